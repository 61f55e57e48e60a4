//! A template: read with everything it builds on, then resolved into one plan for each member of its matrix.
//!
//! How files are put together: `extends` first, then every `include` in its order, then the file itself; a file takes
//! part once, at its first place. What comes later wins key by key. Lists of values are replaced. `[[provision]]`,
//! `[[check]]` and `[[waive]]` are appended, but one of the same name takes the place of the earlier one, and
//! `[remove]` drops earlier ones by name. A base or builder of another kind replaces the earlier one.

mod evaluate;
mod load;
mod matrix;
mod merge;
mod recipe;
mod render;
mod resolve;
mod variables;

use crate::{
    diagnostic::Diagnostics,
    facts::{Facts, Inputs, TemplateText},
    node::{Node, Report},
    plan::Plan,
};

pub(crate) use recipe::digest as recipe;
pub use variables::{Variable, VariableType};

/// The largest template, in bytes, with everything it extends and includes. The TOML parser takes about 37 bytes of
/// memory for one of text.
pub const LARGEST_TEMPLATE: usize = 1 << 20;
/// The most files a template may extend and include.
pub const MOST_INCLUDES: usize = 32;
/// The most members of a matrix.
pub const MOST_MEMBERS: usize = 256;

/// A template that was read and put together. Most mistakes are found by [`Template::plans`].
#[derive(Debug, Clone)]
pub struct Template {
    report: Report,
    document: Node,
}

/// Reads a template and everything it extends and includes.
///
/// Fails on what cannot be read at all: syntax, missing files, the limits above.
pub fn load(entry: &TemplateText, facts: &dyn Facts) -> Result<Template, Diagnostics> {
    load::load(entry, facts)
}

impl Template {
    /// The names of all files that took part, the entry first.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.report.files().map(|(name, _)| name)
    }

    /// The declared variables, for `--help` and for completion; empty where the declarations are wrong.
    pub fn variables(&self) -> Vec<Variable> {
        let mut report = self.report.clone();
        variables::declared(&mut report, &self.document).into_iter().map(|declared| declared.variable).collect()
    }

    /// One plan for each member of the matrix, or for the one image. All mistakes are reported at once.
    pub fn plans(&self, inputs: &Inputs, facts: &dyn Facts) -> Result<Vec<Plan>, Diagnostics> {
        resolve::plans(self.report.clone(), &self.document, inputs, facts)
    }
}
