//! The template language from outside; one program, since linking one takes longer than most of these tests.

#[path = "../shared/world.rs"]
mod shared;

mod checkpoints;
mod ec2;
mod fuzz;
mod images;
mod properties;
mod template;
