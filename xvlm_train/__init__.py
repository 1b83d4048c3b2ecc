"""Pre-training of X-VLM from manifests: ``rows -> samples -> batch -> losses -> step``."""

from xvlm_data import __version__ as __version__
