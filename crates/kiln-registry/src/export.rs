//! Exporting: a file of a version out of the registry, verified.

use std::{fs::File, path::Path};

use kiln_core::artifact::Artifact;
use kiln_disk::{SEGMENT, ordered::ordered};
use kiln_io::fs::Unnamed;

use crate::{
    Lease, Reference, Registry, RegistryError, Selector,
    content::{Content, Descriptor},
    durable::{self, failed},
    head::Record,
    lay_down::{Form, Plain, Sink as _, Sparse},
};

/// Where an exported file goes.
struct Target<'a> {
    file: File,
    /// What it is called in errors.
    path: &'a Path,
}

impl Registry {
    /// Writes the file of `record` that has `format` to `to`, which appears when every byte was verified; what had the
    /// name before is replaced. `watch` gets the bytes done and says whether to go on. How long the file is.
    pub fn export(
        &self,
        record: &Record,
        format: &str,
        to: &Path,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<u64, RegistryError> {
        let unnamed = Unnamed::beside(to).map_err(failed("create", to))?;
        let bytes = self.export_into(&unnamed, record, format, to, watch)?;
        unnamed.place(to).map_err(failed("write", to))?;
        Ok(bytes)
    }

    /// The same into a file that has no name yet, and is called `path` in errors. The qcow2, raw and raw.zst are laid down
    /// from the stored frames.
    pub fn export_into(
        &self,
        unnamed: &Unnamed,
        record: &Record,
        format: &str,
        path: &Path,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<u64, RegistryError> {
        let _leased = self.lease_of(record)?;
        let mut target = Target { file: unnamed.file().try_clone().map_err(failed("open", path))?, path };
        match Form::of(format) {
            None => self.copy_file(record, format, &mut target, watch),
            Some(form) => self.lay_down_file(record, format, form, &target, watch),
        }
    }

    /// Makes the raw disk of `record` at `to`, where nothing may be, for work that ends with this run: every byte is verified, and
    /// nothing is synced. `watch` gets the bytes done and says whether to go on.
    pub fn lay_out(&self, record: &Record, to: &Path, watch: &dyn Fn(u64) -> bool) -> Result<(), RegistryError> {
        let _leased = self.lease_of(record)?;
        let content = self.content(record)?;
        let file = File::create_new(to).map_err(failed("create", to))?;
        self.spread(&content, &Target { file, path: to }, watch)
    }

    /// Writes the raw disk, each chunk verified, from several threads and in any order.
    fn spread(
        &self,
        content: &Content,
        Target { file, path }: &Target<'_>,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<(), RegistryError> {
        file.set_len(content.size).map_err(failed("write", path))?;
        let put = |number: u64| {
            let segment = &content.segments[usize::try_from(number).unwrap_or(usize::MAX)];
            if segment.is_zero() {
                return Ok(());
            }
            let mut piece = self.piece(segment, Form::Raw).map_err(|damage| self.set_aside(damage))?;
            let at = number * SEGMENT as u64;
            piece.truncate(usize::try_from(content.size - at).unwrap_or(usize::MAX));
            Sparse { file, at }.put(&piece).map_err(failed("write", path))
        };
        ordered(content.segments.len() as u64, put, |number, done| {
            let end = ((number + 1) * SEGMENT as u64).min(content.size);
            done.and_then(
                |()| if watch(end) { Ok(()) } else { Err(RegistryError::Stopped { path: (*path).to_owned() }) },
            )
        })
    }

    /// Keeps the blobs of `record` from being collected.
    fn lease_of(&self, record: &Record) -> Result<Option<Lease>, RegistryError> {
        let lease = self.lease()?;
        // Before the lease it may have been retired, and its blobs collected.
        let Artifact { image, version, .. } = &record.artifact;
        let reference = Reference::Named(version.clone());
        Self::select(&*self.head(image)?, &Selector { image: image.clone(), reference })?;
        Ok(lease)
    }

    fn copy_file(
        &self,
        record: &Record,
        format: &str,
        to: &mut Target<'_>,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<u64, RegistryError> {
        let file = record.file(format).ok_or_else(|| RegistryError::UnknownFormat {
            image: record.artifact.image.clone(),
            version: record.artifact.version.clone(),
            format: format.to_owned(),
            stored: record.artifact.files.iter().map(|file| file.format.clone()).collect(),
        })?;
        let blob = Descriptor { media_type: String::new(), digest: file.sha256, size: file.bytes };
        let open = self.sized_blob(&blob).map_err(|damage| self.set_aside(damage))?;
        let path = self.blob(&file.sha256);
        let found = durable::copy(&mut open.stored.reader(), &path, &mut to.file, to.path, file.bytes, watch)?;
        open.judge(found).map_err(|damage| self.set_aside(damage))?;
        Ok(file.bytes)
    }

    fn lay_down_file(
        &self,
        record: &Record,
        format: &str,
        form: Form,
        to: &Target<'_>,
        watch: &dyn Fn(u64) -> bool,
    ) -> Result<u64, RegistryError> {
        let content = self.content(record)?;
        let recorded = record.file(format);
        if form == Form::Raw && recorded.is_none() {
            // There is no digest to compare the whole with.
            self.spread(&content, to, watch)?;
            return Ok(content.size);
        }
        let into_place = |error| match error {
            RegistryError::Sink(source) => failed("write", to.path)(source),
            other => other,
        };
        let (bytes, found) = if form == Form::Raw {
            let mut sink = Sparse { file: &to.file, at: 0 };
            let laid = self.lay_down(&content, form, &mut sink, watch).map_err(into_place)?;
            to.file.set_len(content.size).map_err(failed("write", to.path))?;
            laid
        } else {
            self.lay_down(&content, form, &mut Plain(&to.file), watch).map_err(into_place)?
        };
        match recorded.map(|file| file.sha256) {
            Some(expected) if expected != found => {
                Err(RegistryError::Altered { path: to.path.to_owned(), expected, found })
            }
            _ => Ok(bytes),
        }
    }
}
