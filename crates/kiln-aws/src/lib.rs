//! Sealed images as AMIs: what changed of a disk goes up block by block, is read back, and is registered.
//!
//! ```text
//! account    who we are, and a client for each region
//! call       the one way a request is sent: back-off, throttling, lost replies, expired credentials
//! intent     the mark on all that is made, and its entry in the ledger
//! blocks     which 512 KiB blocks of a disk have to be written (no network)
//! upload     a snapshot: find or start, put, complete, wait
//! read_back  the finished snapshot against the chunk list
//! image      an AMI: find or register, wait
//! sharing    who may launch it, until when, and how well it is protected
//! publish    the way through all of these in one region, and in all that were asked for
//! parameter, launch_template, release   what machines start from it
//! retention  old AMIs, withdrawn and later deleted
//! health     AMIs that somebody else changed or took away
//! builder    an instance that a bake runs in, until its disk is here
//! trial      an AMI of a sealed disk that is tried before it is published
//! reconcile  what a dead kiln left in an account, released by its intent
//! ```
//!
//! Each step asks what is there before it makes anything, so that it can run twice, and after any failure again.
//!
//! This crate must not know how an image is made, print, delete anything that lacks the mark of an intent in a ledger of ours,
//! or make anything public unless it is told to.

mod account;
pub mod blocks;
mod builder;
mod call;
mod error;
mod health;
mod image;
mod intent;
mod launch_template;
mod pace;
mod parameter;
mod publish;
mod read_back;
mod reconcile;
mod release;
mod retention;
mod sharing;
mod trial;
mod upload;

pub use self::{
    account::{Access, Account, Region, StandIn},
    builder::{Instance, Wanted},
    call::Patience,
    error::AwsError,
    health::{Checked, Health},
    publish::{OpenCatalog, Outcome, Place, Published, Publisher, Report},
    reconcile::{Released, reconcile},
    release::{Refresh, Release},
    retention::{Fate, Keep, Verdict},
    sharing::Sharing,
    trial::{Trial, Tried, Trying},
};

/// What is told while something is published; called from many tasks.
pub trait Watch: Send + Sync + std::fmt::Debug {
    fn note(&self, region: &str, note: Note<'_>);
}

/// One piece of news.
#[derive(Debug, Clone, Copy)]
pub enum Note<'a> {
    /// `blocks` of 512 KiB have to be written, `present` of them were already, on top of the snapshot of version `parent`.
    Uploading { blocks: usize, present: usize, parent: Option<&'a str> },
    /// So many of the blocks that had to be sent are there; told every few seconds.
    Sent { done: usize, blocks: usize },
    /// All blocks are there; AWS makes the snapshot.
    Waiting { what: &'a str, progress: &'a str },
    /// Every block that was written was read back and is right.
    ReadBack { blocks: usize },
    /// Nothing answers, or only that something is broken there; it is asked again, for minutes.
    NoAnswer { problem: &'a AwsError },
    /// AWS asks for fewer requests.
    Throttled,
    /// Another kiln began this, and it goes on from there.
    Resumed { snapshot: &'a str },
}

/// Tells nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Watch for Silent {
    fn note(&self, _: &str, _: Note<'_>) {}
}
