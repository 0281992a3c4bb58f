"""python -m bert_lora: the command `bert-lora`."""

from bert_lora.cli import cli

if __name__ == "__main__":
    cli()
