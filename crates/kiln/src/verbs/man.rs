//! `kiln man`: the manual pages, from the same source as `--help`.

use clap::CommandFactory as _;

use crate::{
    arguments::{Arguments, Man},
    failure::{Exit, Failure, Outcome},
    output,
};

pub(crate) fn run(arguments: &Man) -> Outcome {
    let command = Arguments::command();
    match &arguments.to {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).map_err(|error| Failure::of(&error))?;
            output::data(&String::from_utf8_lossy(&page))?;
        }
        Some(directory) => {
            let written =
                std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
            written.map_err(kiln_io::fs::failed("write the pages into", directory, 0))?;
            output::talk(&format!("the pages are in {}", directory.display()));
        }
    }
    Ok(Exit::Done)
}
