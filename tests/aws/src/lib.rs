//! A fake of the parts of AWS that images need: EC2, EBS direct, SSM parameters, Auto Scaling and STS, over real HTTP.
//!
//! It keeps state per account and region, stores the blocks of snapshots for real, and refuses what AWS refuses with
//! AWS's own codes. Whatever it does not know, it refuses by name: nothing is ignored in silence.
//!
//! This crate must not use the AWS SDK: a fake written with the client's own code would share its mistakes.

mod autoscaling;
mod blocks;
mod ebs;
mod ec2;
mod fake;
mod fault;
mod form;
mod json;
mod ledger;
mod machines;
mod refusal;
mod request;
mod rights;
mod server;
mod ssm;
mod sts;
mod world;
mod xml;

pub use crate::{
    blocks::BLOCK,
    fake::{BaseImage, Fake, Living},
    fault::{Fault, Schedule},
    ledger::Entry,
    machines::{Launch, Machines},
    refusal::Refusal,
    rights::documented,
    world::Pace,
};
