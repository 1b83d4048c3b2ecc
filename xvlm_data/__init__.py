"""Official vision-language releases in, one Parquet manifest out.

The flow is ``raw files -> records -> rules -> manifest``; :mod:`xvlm_data.schema` is the product.
This package never imports torch.
"""

__version__ = "0.1.0"
