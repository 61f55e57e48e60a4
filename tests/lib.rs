//! What the tests of the whole share: the built binary, a cleared environment, deadlines that scale.

pub mod guest;
pub mod proxy;
pub mod sshd;
