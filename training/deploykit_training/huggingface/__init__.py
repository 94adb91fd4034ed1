"""The callback for the Trainer of Hugging Face; `deploykit.transformers` names it. Its modules import transformers."""
