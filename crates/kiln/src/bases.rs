//! Published images as bases: which version a template means, and how its disk gets into the cache.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use kiln_build::base::{Images, NotLaidDown};
use kiln_core::{
    ByteSize, Digest, ImageName, Version,
    artifact::{Artifact, ParentRecord},
    facts::{FactError, Facts, ImageFact, InputFact, ProvisionerFact, TemplateText},
    plan::{Ami, AmiWish, Base, ImageVersion, Plan, VersionSpec},
};
use kiln_provision::HostFacts;
use kiln_registry::{Reference, Registry, RegistryError, Selector};

use crate::{failure::Failure, lock::Lock, surroundings};

/// Where versions are looked up.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    /// The registry's directory, bucket or server; opened when something is looked up, since most templates need none.
    pub(crate) root: PathBuf,
    /// A revoked version may be built on when the version itself is named.
    pub(crate) allow_revoked: bool,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// The facts of a template, with those of the registry.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) host: &'a HostFacts,
    /// `None`: nobody looks, every base is taken as one that will be there.
    pub(crate) shelf: Option<&'a Shelf>,
    /// What the same run makes, and stands on.
    pub(crate) run: &'a InRun,
    /// Whether an image or an AMI was asked for.
    pub(crate) asked: Cell<bool>,
    /// What AMIs meant the last time.
    pub(crate) lock: RefCell<Lock>,
}

/// What the images that are meant are, and what they stand on.
#[derive(Debug, Default)]
pub(crate) struct InRun {
    made: Vec<(ImageName, VersionSpec)>,
    /// As written in the templates; of the others nobody needs to know what they stand on.
    bases: BTreeSet<String>,
}

impl InRun {
    pub(crate) fn of<'p>(plans: impl Iterator<Item = &'p Plan> + Clone) -> Self {
        let bases = plans.clone().filter_map(|plan| match &plan.base {
            Base::Image(base) => Some(base.reference.trim_end_matches("@latest").to_owned()),
            _ => None,
        });
        Self { bases: bases.collect(), made: plans.map(|plan| (plan.image.clone(), plan.version.clone())).collect() }
    }
}

impl Shelf {
    fn open(&self, image: &ImageName) -> Result<Registry, Failure> {
        surroundings::read(&self.root, image)
    }

    /// What `image` and `reference` mean now.
    pub(crate) fn version(&self, image: &ImageName, reference: Option<&str>) -> Result<ImageVersion, FactError> {
        let reference = match reference.unwrap_or("latest").parse::<Reference>() {
            Ok(reference) => reference,
            Err(error) => return Err(FactError::new(error.to_string())),
        };
        let selector = Selector { image: image.clone(), reference };
        let found = self.open(image).and_then(|registry| {
            let record = registry.usable(&selector, self.now, self.allow_revoked)?;
            surroundings::refuse_unproven(&registry, &record, false)?;
            Ok(record)
        });
        let record = found.map_err(|failure| not_there(&failure))?;
        version(&record.artifact)
    }
}

impl Shelf {
    /// The AMI in `region` of what `image` and `reference` mean now.
    fn ami(&self, region: &str, image: &ImageName, reference: Option<&str>) -> Result<Ami, FactError> {
        let version = self.version(image, reference)?;
        let amis = self.open(image).and_then(|registry| Ok(registry.amis(image, &version.version)?));
        let amis = amis.map_err(|failure| not_there(&failure))?;
        let mut here = amis.into_iter().filter(|ami| ami.region == region);
        let name = format!("{image}@{}", version.version);
        match (here.next(), here.next()) {
            (Some(found), None) => Ok(Ami {
                ami: found.ami,
                owner: Some(found.account),
                name: None,
                parent: Some(ParentRecord { image: image.clone(), version: version.version, disk: version.disk }),
            }),
            (None, _) => Err(FactError::new(format!("`{name}` has no AMI in {region}"))
                .with_hint(format!("`kiln publish ami {name} --region {region}` makes one"))),
            (Some(_), Some(_)) => Err(FactError::new(format!("`{name}` has AMIs of several accounts in {region}"))
                .with_hint("name the one that is meant by its id in `[base.ami]`")),
        }
    }
}

/// A published image as a base.
pub(crate) fn version(artifact: &Artifact) -> Result<ImageVersion, FactError> {
    let name = format!("{}@{}", artifact.image, artifact.version);
    let qcow2 = artifact.files.iter().find(|file| file.format == "qcow2");
    let (Some(boot), Some(qcow2)) = (&artifact.boot, qcow2) else {
        return Err(FactError::new(format!(
            "`{name}` was baked by an earlier kiln, which did not record how to log in to it"
        ))
        .with_hint("bake it again; or export it and name the file in `[base.qcow2]` with its `login`"));
    };
    Ok(ImageVersion {
        version: artifact.version.clone(),
        disk: artifact.disk.digest,
        qcow2: qcow2.sha256,
        size: ByteSize(artifact.disk.size),
        boot: boot.clone(),
    })
}

fn not_there(failure: &Failure) -> FactError {
    let fact = FactError::new(failure.on_one_line());
    match &failure.hint {
        Some(hint) => fact.with_hint(hint),
        None => fact,
    }
}

impl Known<'_> {
    fn is_needed(&self, image: &ImageName, reference: Option<&str>) -> bool {
        let written = reference.map_or_else(|| image.to_string(), |reference| format!("{image}@{reference}"));
        self.run.bases.contains(&written)
    }

    /// Whether the same run makes what is meant: the image, unless an exact version is named that it does not make.
    fn made_here(&self, image: &ImageName, reference: Option<&str>) -> bool {
        let Some((_, spec)) = self.run.made.iter().find(|(made, _)| made == image) else { return false };
        let Some(reference) = reference else { return true };
        if reference.parse::<Digest>().is_ok() {
            return false;
        }
        if *spec == reference.parse::<Version>().map_or(VersionSpec::Auto, VersionSpec::Fixed) {
            return true;
        }
        // A channel begins with a letter. What the registry has as a version is that version.
        let channel = reference.starts_with(|c: char| c.is_ascii_alphabetic());
        channel && !self.is_version(image, reference)
    }

    fn is_version(&self, image: &ImageName, reference: &str) -> bool {
        let versions = self.shelf.and_then(|shelf| shelf.open(image).ok()?.versions(image).ok());
        versions.is_some_and(|versions| versions.iter().any(|listed| listed.version.as_str() == reference))
    }
}

impl Facts for Known<'_> {
    fn template(&self, from: &str, path: &str) -> Result<TemplateText, FactError> {
        self.host.template(from, path)
    }

    fn input(&self, from: &str, path: &str, allowed: &[String]) -> Result<InputFact, FactError> {
        self.host.input(from, path, allowed)
    }

    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError> {
        self.host.provisioner(name)
    }

    fn provisioner_names(&self) -> Vec<String> {
        self.host.provisioner_names()
    }

    fn image(&self, image: &ImageName, reference: Option<&str>) -> Result<ImageFact, FactError> {
        self.asked.set(true);
        match self.shelf {
            None => Ok(ImageFact::Awaited),
            Some(_) if !self.is_needed(image, reference) || self.made_here(image, reference) => Ok(ImageFact::Awaited),
            Some(shelf) => Ok(ImageFact::Published(Box::new(shelf.version(image, reference)?))),
        }
    }

    fn ami(&self, region: &str, wanted: &AmiWish) -> Result<Option<Ami>, FactError> {
        self.asked.set(true);
        let Some(shelf) = self.shelf else { return Ok(None) };
        match wanted {
            AmiWish::Image { image, reference } if self.made_here(image, reference.as_deref()) => {
                Err(FactError::new(format!("`{image}` is made in the same run and has no AMI yet"))
                    .with_hint("build it in a run of its own first"))
            }
            AmiWish::Image { image, reference } => shelf.ami(region, image, reference.as_deref()).map(Some),
            wanted => self.lock.borrow_mut().find(region, wanted).map(Some),
        }
    }
}

impl Images for Shelf {
    fn lay_down(
        &self,
        image: &ImageName,
        version: &ImageVersion,
        to: &Path,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<(), NotLaidDown> {
        let selector = Selector { image: image.clone(), reference: Reference::Named(version.version.clone()) };
        let laid = self.open(image).and_then(|registry| {
            let record = registry.record(&selector)?;
            let (expected, found) = (version.disk, record.artifact.disk.digest);
            if found != expected {
                return Err(RegistryError::Altered { path: self.root.clone(), expected, found }.into());
            }
            Ok(registry.export(&record, "qcow2", to, watch)?)
        });
        laid.map(drop).map_err(|failure| NotLaidDown { message: failure.on_one_line(), hint: failure.hint })
    }
}
