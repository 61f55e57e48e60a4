//! `kiln fmt`: one layout for templates.

use std::{
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use kiln_core::format::format;

use crate::{
    arguments::Fmt,
    failure::{Exit, Failure, Outcome},
    output, templates,
};

pub(crate) fn run(arguments: &Fmt) -> Outcome {
    let mut changed = Vec::new();
    for path in &arguments.templates {
        if path.as_os_str() == "-" {
            standard_input(arguments.check)?;
        } else if let Some(name) = one_file(&templates::file(path)?, arguments.check)? {
            changed.push(name);
        }
    }
    let word = if arguments.check { "would change" } else { "changed" };
    for name in &changed {
        output::talk(&format!("{word} {name}"));
    }
    if arguments.check && !changed.is_empty() { Ok(Exit::Failed) } else { Ok(Exit::Done) }
}

/// The name of the file, if it is not in the standard layout.
fn one_file(path: &Path, check: bool) -> Result<Option<String>, Failure> {
    let name = path.display().to_string();
    let before = kiln_io::fs::read_text(path)?;
    let after = format(&name, &before).map_err(|mistakes| Failure::template(&mistakes))?;
    if before == after {
        return Ok(None);
    }
    if !check {
        // A link stays a link: what it points at is written.
        let file = kiln_io::fs::canonical(path)?;
        let mode = file.metadata().map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
        kiln_io::fs::write_atomic(&file, after.as_bytes(), mode)?;
    }
    Ok(Some(name))
}

fn standard_input(check: bool) -> Result<(), Failure> {
    let mut before = String::new();
    io::stdin()
        .read_to_string(&mut before)
        .map_err(|error| Failure::new("cannot read stdin").because(error.to_string()))?;
    let after = format("stdin", &before).map_err(|mistakes| Failure::template(&mistakes))?;
    if !check {
        output::data(&after)
    } else if before == after {
        Ok(())
    } else {
        Err(Failure::new("stdin is not in the standard layout").hint("`kiln fmt -` prints it so"))
    }
}
