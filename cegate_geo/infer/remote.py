"""Rasters over a network: which names mean one, and how GDAL is to fetch them.

Object stores go by GDAL's own configuration: AWS_* and the like, or a profile (https://gdal.org/user/virtual_file_systems.html).
"""

from __future__ import annotations

import os

LOCAL_SCHEMES = ("file://", "zip://", "tar://", "gzip://")
REMOTE_PREFIXES = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift", "/vsiwebhdfs")
SETTINGS = {
    # Side files are asked for by name: listing a bucket of a million objects takes longer than a prediction.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    # Directory and header of a COG in one request; 16 KB, the default, cuts it in two.
    "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    # Servers that are busy (429, 500, 502 to 504) are asked again, waiting twice as long each time.
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    # A server that says nothing is given up: without these GDAL would wait for ever.
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}
"""GDAL's options while a remote scene is open, where the environment does not say otherwise."""
SCHEMES = {"s3://": "/vsis3/", "gs://": "/vsigs/", "az://": "/vsiaz/", "http://": "/vsicurl/http://",
           "https://": "/vsicurl/https://"}  # fmt: skip
"""How addresses begin → the same in GDAL's names."""


def is_remote(name: str) -> bool:
    """Whether GDAL fetches it over a network."""
    return name.startswith(REMOTE_PREFIXES) or ("://" in name and not name.startswith(LOCAL_SCHEMES))


def gdal_name(name: str) -> str:
    """A raster's name as GDAL has it; what is none of `SCHEMES` stays as it is."""
    for scheme, prefix in SCHEMES.items():
        if name.lower().startswith(scheme):
            return prefix + name[len(scheme) :]
    return name


def remote_settings(name: str) -> dict[str, str]:
    """GDAL's options for a scene: none for local ones, and none that the environment sets."""
    if not is_remote(name):
        return {}
    return {option: value for option, value in SETTINGS.items() if option not in os.environ}
