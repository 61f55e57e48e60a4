//! `kiln schema`: the JSON Schema of templates.

use crate::{
    failure::{Exit, Outcome},
    output,
};

pub(crate) fn run() -> Outcome {
    output::json(&kiln_core::schema::template_schema())?;
    Ok(Exit::Done)
}
