"""Text: documents in a stated order, and their packing into token batches."""
