"""Pictures and clips to tokenizer, packed shards and manifest."""
