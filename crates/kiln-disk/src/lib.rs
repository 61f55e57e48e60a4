//! kiln-disk
