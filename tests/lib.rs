//! What the tests of the whole share: the built binary, a cleared environment, deadlines that scale.

#![expect(clippy::missing_panics_doc, clippy::return_self_not_must_use, reason = "in a test a panic is the report")]
#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

pub mod guest;
pub mod home;
pub mod moto;
pub mod other_machine;
pub mod plain_vm;
pub mod proxy;
pub mod running;
pub mod served;
pub mod sshd;
pub mod strace;
