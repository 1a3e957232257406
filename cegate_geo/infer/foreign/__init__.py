"""Models of other tools: readers of what stands in or beside their files, and the contract that is made of it."""
