"""What applications and handlers call: client, transaction, context, streams, instruments."""
