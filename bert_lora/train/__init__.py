"""From labelled data to an adapter: `bert-lora train`."""
