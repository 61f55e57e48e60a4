//! Disks and file systems as bytes, judged by stock programs; one program, since linking one takes longer than most of these tests.

mod agreement;
mod hygiene;
mod placement;
mod sealing;
