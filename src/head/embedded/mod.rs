//! The embedded head: SQLite, unmodified and bundled, on the volume's pages through a small VFS of our own.
