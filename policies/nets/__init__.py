"""Networks. They import torch only and know nothing of observations, units or files."""
