//! Everything that was asked for, and what it created and deleted.

use crate::fault::Fault;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Counts every call, from 1.
    pub number: u64,
    pub account: String,
    pub region: String,
    pub action: String,
    /// What the schedule did to it.
    pub fault: Option<Fault>,
    /// The code of the refusal, if it was refused. A lost reply is no refusal.
    pub refused: Option<String>,
    pub created: Vec<String>,
    pub deleted: Vec<String>,
}
