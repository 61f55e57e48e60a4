//! Verifies the hygiene of a raw disk and prints the findings: `verify DISK`. The residue search is not part of it.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::{error::Error, fs::File, sync::Arc};

use kiln_disk::{
    FileBytes, ReadAt,
    hygiene::{Asked, verify, verify_disk},
    residue::Scan,
};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: verify DISK")?;
    let file: Arc<dyn ReadAt> = Arc::new(FileBytes::new(File::open(&path)?)?);
    let scan = Scan::new(&[]);
    let asked = Asked { scan: Some(&scan), ..Asked::default() };
    let findings = if path.rsplit_once('.').is_some_and(|(_, format)| format == "qcow2") {
        verify(file, &asked)
    } else {
        verify_disk(&file, &asked)
    };
    for finding in &findings {
        println!("{} {} {} {}", finding.id, finding.level, finding.path, finding.detail);
    }
    println!("{} findings", findings.len());
    Ok(())
}
