//! A bake in a machine that somebody else runs: the same steps, checks and cleaning, then its disk as a file here.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use kiln_core::{
    Digest,
    artifact::{BaseRecord, BootRecord, Machine as MachineRecord},
    event::{Event, Phase, Unit},
    plan::{Ami, Ec2Machine, Login, Plan},
};
use kiln_disk::DiskFile;
use kiln_io::{
    fs,
    guest::{Access, Command, Guest as _, GuestError, Quiet},
    keys::KeyPair,
    ledger::Ledger,
    ssh::{PRIVATE, SshGuest, Target},
    time::{Attempt, Clock, GaveUp, Policy, poll_until},
};

use super::{
    BakeContext, BakeError, Provisioned, Stopped,
    artifact::About,
    guest::{self, Work},
    journal::Journal,
    keeps,
};
use crate::{
    qemu::{BootError, LoginKeys, POWER_OFF},
    remote::{Machine, Order},
};

/// One attempt to connect and log in.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How long the order to power off may take to be heard.
const ORDER: Duration = Duration::from_secs(15);

/// What a bake in such a machine needs.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) plan: &'a Plan,
    pub(super) machine: &'a Ec2Machine,
    pub(super) ami: &'a Ami,
    pub(super) context: &'a BakeContext,
    pub(super) ledger: &'a Ledger,
    pub(super) clock: &'a dyn Clock,
}

/// From nothing to the disk of a machine that was provisioned, checked, cleaned and shut down. `None` when it stays for a person.
pub(super) async fn provision(
    scene: Scene<'_>,
    journal: &mut Journal<'_>,
) -> Result<Option<(Provisioned, About)>, Stopped> {
    let Scene { plan, context, ledger, .. } = scene;
    let Some(machines) = &context.machines else { return Err(BakeError::NoMachines.into()) };
    let keys = LoginKeys {
        login: KeyPair::generate("kiln").map_err(BootError::from).map_err(BakeError::boot)?,
        host: KeyPair::generate("").map_err(BootError::from).map_err(BakeError::boot)?,
    };
    let order = Order {
        plan,
        machine: scene.machine,
        ami: &scene.ami.ami,
        build: &context.build,
        ledger,
        keys: &keys,
        cancel: &context.cancel,
    };
    let what = format!("an instance in {}", scene.machine.region);
    let boot = async {
        let machine = machines.start(order).await.map_err(BakeError::remote)?;
        match scene.reach(machine.as_ref(), &keys).await {
            Ok(guest) => Ok((machine, guest)),
            Err(error) => Err(let_down(machine.as_ref(), error).await),
        }
    };
    let (machine, guest) = journal.phase(Phase::Boot, &what, boot, |(machine, _)| machine.place().what.clone()).await?;
    let machine = machine.as_ref();
    let done = tokio::select! {
        done = scene.work(&guest, &keys, journal) => done,
        trouble = machine.watch() => Err(BakeError::remote(trouble)),
    };
    match done {
        Ok(guest::Reached::Step) => {
            keep(ledger, &guest)?;
            return Ok(None);
        }
        Ok(guest::Reached::End) => {}
        Err(error) => {
            let keep_it = keeps(context, &error).await;
            if keep_it {
                keep(ledger, &guest)?;
                return Err(Stopped { error, keep: true });
            }
            return Err(let_down(machine, error).await.into());
        }
    }
    match scene.bring_home(machine, guest, journal).await {
        Ok((disk, entry)) => {
            let layers = vec![DiskFile::raw(&disk)];
            let about = scene.about(machine);
            Ok(Some((Provisioned { layers, disk, entry, keys }, about)))
        }
        Err(error) => Err(let_down(machine, error).await.into()),
    }
}

/// The machine goes, whatever else; what of it cannot go stands in the ledger.
async fn let_down(machine: &dyn Machine, error: BakeError) -> BakeError {
    match machine.release().await {
        Ok(()) => error,
        Err(left) => BakeError::Left { error: Box::new(error), left: vec![left.message] },
    }
}

/// Leaves the machine running for `kiln ssh`.
fn keep(ledger: &Ledger, guest: &SshGuest) -> Result<(), BakeError> {
    let Some(access) = guest.access() else { return Ok(()) };
    let path = ledger.directory().join(Access::FILE);
    ledger.acquire_file("access file", &path)?;
    let text = serde_json::to_vec_pretty(&access).map_err(BakeError::Record)?;
    Ok(fs::write_private(&path, &text)?)
}

impl Scene<'_> {
    /// Waits for SSH while it watches the machine.
    async fn reach(&self, machine: &dyn Machine, keys: &LoginKeys) -> Result<SshGuest, BakeError> {
        let place = machine.place();
        let file = |name: &str, bytes: &[u8]| -> Result<PathBuf, BakeError> {
            let path = self.ledger.directory().join(name);
            self.ledger.acquire_file(name, &path)?;
            fs::write_private(&path, bytes)?;
            Ok(path)
        };
        let target = Target {
            host: place.host.clone(),
            port: place.port,
            user: place.user.clone(),
            proxy: place.proxy.clone(),
            host_key: keys.host.public.clone(),
            login: keys.login.clone(),
            key_file: file("key", keys.login.private.reveal().as_bytes())?,
            known_hosts: file("known_hosts", keys.host.public.known_hosts(&place.host, place.port).as_bytes())?,
            attempt: ATTEMPT,
            return_within: self.machine.boot_timeout,
            private: PRIVATE.into(),
        };
        let limit = self.machine.boot_timeout;
        let policy = Policy { first: Duration::from_millis(250), max: Duration::from_secs(2), deadline: limit };
        let cancel = &self.context.cancel;
        // It may answer with keys of its own before cloud-init has put ours in their place.
        let connected = poll_until(self.clock, policy, cancel, || async {
            match SshGuest::connect(target.clone(), cancel.clone()).await {
                Ok(guest) => Attempt::Done(guest),
                Err(GuestError::Cancelled) => Attempt::Stop(GuestError::Cancelled),
                Err(error) => Attempt::Again(error),
            }
        });
        let connected = tokio::select! {
            biased;
            trouble = machine.watch() => return Err(BakeError::remote(trouble)),
            connected = connected => connected,
        };
        match connected {
            Ok(guest) => Ok(guest),
            Err(GaveUp::Cancelled | GaveUp::Stopped(_)) => Err(BakeError::Cancelled),
            Err(GaveUp::Deadline(source)) => {
                let (address, console) = (format!("{}:{}", place.host, place.port), machine.console().await);
                Err(BakeError::Unreachable { what: place.what.clone(), address, limit, console, source })
            }
        }
    }

    async fn work(
        &self,
        guest: &SshGuest,
        keys: &LoginKeys,
        journal: &mut Journal<'_>,
    ) -> Result<guest::Reached, BakeError> {
        let Self { plan, context, clock, .. } = *self;
        let work = Work { plan, checks: &plan.checks, context, clock, directory: self.ledger.directory() };
        work.run_in(guest, keys, journal).await
    }

    /// Powers the machine off, takes its disk, and gives everything else back.
    async fn bring_home(
        &self,
        machine: &dyn Machine,
        guest: SshGuest,
        journal: &mut Journal<'_>,
    ) -> Result<(PathBuf, kiln_io::ledger::EntryId), BakeError> {
        let off = async {
            machine.let_go().await.map_err(BakeError::remote)?;
            let order = Command { reboots: true, ..Command::new(POWER_OFF, ORDER) };
            // The connection may well break under it; whether it was heard shows in the machine's state.
            let _ = guest.run(&order, &Quiet).await;
            Ok::<_, BakeError>(())
        };
        journal.phase(Phase::Shutdown, "", off, |()| "told to power off".to_owned()).await?;
        let path = self.ledger.directory().join("disk.raw");
        let entry = self.ledger.acquire_file("disk", &path)?;
        let events = self.context.events.as_ref();
        let progress =
            |done, total| events.emit(Event::Progress { phase: Phase::Download, done, total, unit: Unit::Bytes });
        let fetch = async { machine.disk(&path, &progress).await.map_err(BakeError::remote) };
        let words = |bytes: &u64| kiln_core::ByteSize(*bytes).to_string();
        journal.phase(Phase::Download, "the machine's disk", fetch, words).await?;
        machine.release().await.map_err(BakeError::remote)?;
        Ok((path, entry))
    }

    /// What the record says of base and machine.
    fn about(&self, machine: &dyn Machine) -> About {
        About {
            base: base(&self.machine.region, self.ami),
            // Its user data came through cloud-init, so a seed will, too.
            boot: BootRecord { login: Login::Nocloud, command_line: None },
            machine: MachineRecord {
                builder: "ec2".to_owned(),
                accelerator: machine.place().kind.clone(),
                reason: machine.place().what.clone(),
                memory: 0,
                cpus: 0,
            },
            tools: BTreeMap::new(),
        }
    }
}

/// An AMI has no file that could be hashed, and its id never means anything else: the digests are those of the id.
fn base(region: &str, found: &Ami) -> BaseRecord {
    let name = format!("ami://{region}/{}", found.ami);
    let digest = Digest::of(name.as_bytes());
    BaseRecord { digest, key: digest, name, parent: found.parent.clone() }
}
