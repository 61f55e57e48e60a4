//! kiln-provision
