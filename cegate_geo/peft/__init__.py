"""Small trainable modules for any timm ViT, and the gate that chooses among them. Tensors in, tensors out."""
