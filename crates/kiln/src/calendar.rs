//! Dates and times, under the name that the verbs use.

pub(crate) use kiln_core::moment::Moment;
