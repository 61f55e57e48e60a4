//! A step as what the guest gets: the files of its private directory and its environment.

use std::fmt::Write as _;

mod environment;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use kiln_core::{
    ByteSize, Secret, duration,
    manifest::{OptionKind, OptionSpec},
    plan::{Input, Step},
};
use kiln_io::{
    error::FsError,
    guest::{self, Content, Entry},
    tree,
};
use serde_json::Value;

use crate::{Provisioner, error::BundleError};

/// Files up to this size are read when the step is packed, so that they can travel with its script.
const SMALL: u64 = 64 << 10;

/// Everything a step needs, for one directory on the machine it runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// Absolute path of the step's directory.
    pub directory: String,
    /// The words that start it: its interpreter where its first line names one (so that it runs where nothing may be
    /// executed), and its path in the directory.
    pub run: Vec<String>,
    /// Relative to the directory; parents stand before what is in them.
    pub entries: Vec<Entry>,
    /// `KILN_*` and the step's own.
    pub env: BTreeMap<String, String>,
}

impl Bundle {
    /// The files, for a command that brings them along.
    pub fn files(&self) -> guest::Bundle {
        guest::Bundle { directory: self.directory.clone(), entries: self.entries.clone() }
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        size(self.entries.iter())
    }
}

/// The inputs of a step, read from disk: JSON pointer of the option to the entries that carry it, and the path of the
/// first of them, which takes the place of the option's value. All paths are relative to the step's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(BTreeMap<String, (String, Vec<Entry>)>);

impl Inputs {
    /// Reads the inputs of `step` and makes sure that they are still what the plan says.
    pub fn read(step: &Step) -> Result<Self, BundleError> {
        let mut inputs = BTreeMap::new();
        for input in &step.inputs {
            let path = Path::new(&input.resolved);
            if tree::input(path)?.digest != input.digest {
                return Err(BundleError::Changed { what: format!("the input `{}`", input.path) });
            }
            let target = place(input);
            let mut entries = tree::entries(path, Path::new(&target))?;
            for entry in &mut entries {
                inline(entry)?;
            }
            inputs.insert(input.option.clone(), (target, entries));
        }
        Ok(Self(inputs))
    }
}

/// Steps up to this size live in memory. Debian gives `/run` a tenth of the memory.
const IN_MEMORY: u64 = 8 << 20;

/// The directory of a step in the guest: `/run/kiln/step-<n>`, in memory; for a step that is large, or that holds programs
/// besides its own `run`, `/var/tmp/kiln-step-<n>`, because `/run` is small and on Debian mounted `noexec`.
pub fn guest_directory(step: &Step, provisioner: &Provisioner, inputs: &Inputs) -> String {
    let entries = || provisioner.entries.iter().chain(inputs.0.values().flat_map(|(_, entries)| entries));
    let run = Path::new(&provisioner.manifest.run);
    let program = |entry: &Entry| match &entry.content {
        Content::Directory | Content::Link(_) => false,
        Content::Bytes(bytes) if entry.path == run => interpreter(bytes).is_none(),
        Content::Bytes(_) | Content::File { .. } => entry.mode & 0o111 != 0,
    };
    let number = step.number;
    if entries().any(program) || size(entries()) > IN_MEMORY {
        format!("/var/tmp/kiln-step-{number}")
    } else {
        format!("/run/kiln/step-{number}")
    }
}

/// Interpreter and argument of the first line, as the kernel splits them.
fn interpreter(bytes: &[u8]) -> Option<Vec<String>> {
    let line = bytes.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = str::from_utf8(line).ok()?.trim();
    let words = line.splitn(2, [' ', '\t']).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty());
    Some(words.collect()).filter(|words: &Vec<String>| !words.is_empty())
}

fn start(provisioner: &Provisioner) -> Vec<String> {
    let run = &provisioner.manifest.run;
    let entry = provisioner.entries.iter().find(|entry| entry.path == Path::new(run));
    let mut words = match entry.map(|entry| &entry.content) {
        Some(Content::Bytes(bytes)) => interpreter(bytes).unwrap_or_default(),
        _ => Vec::new(),
    };
    words.push(format!("./{run}"));
    words
}

fn size<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    let one = |entry: &Entry| match &entry.content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::File { bytes, .. } => *bytes,
        Content::Directory | Content::Link(_) => 0,
    };
    entries.map(one).sum()
}

/// Packs `step` for `directory` on the machine that will run it. Pure.
pub fn pack(step: &Step, provisioner: &Provisioner, inputs: &Inputs, directory: &str) -> Result<Bundle, BundleError> {
    if provisioner.digest != step.provisioner_digest {
        return Err(BundleError::Changed { what: format!("the provisioner `{}`", step.provisioner) });
    }
    let mut packer = Packer { directory, inputs, entries: provisioner.entries.clone() };
    let specs = &provisioner.manifest.options;
    let options = packer.table(specs, &step.options, "")?;
    let mut env = environment::flatten(specs, &options)?;
    let json = serde_json::to_vec_pretty(&options).unwrap_or_default();
    packer.file("options.json".into(), json);
    let inside = |name: &str| format!("{directory}/{name}");
    env.extend([
        ("KILN_OPTIONS".to_owned(), inside("options.json")),
        ("KILN_STEP_DIR".to_owned(), directory.to_owned()),
        ("KILN_FILES".to_owned(), inside("files")),
        ("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned()),
    ]);
    env.extend(step.env.clone());
    environment::check(&env)?;
    Ok(Bundle { directory: directory.to_owned(), run: start(provisioner), entries: with_parents(packer.entries), env })
}

/// The secrets a step gets: environment name to value.
pub fn secrets(step: &Step, values: &BTreeMap<String, Secret>) -> Result<BTreeMap<String, Secret>, BundleError> {
    let value = |name: &String| values.get(name).cloned().ok_or_else(|| BundleError::NoSecret { name: name.clone() });
    let secrets: BTreeMap<String, Secret> =
        step.secrets.iter().map(|(env, name)| Ok((env.clone(), value(name)?))).collect::<Result<_, BundleError>>()?;
    match secrets.iter().find(|(_, value)| value.reveal().contains('\0')) {
        Some((name, _)) => Err(BundleError::Nul { option: name.clone() }),
        None => Ok(secrets),
    }
}

struct Packer<'a> {
    directory: &'a str,
    inputs: &'a Inputs,
    entries: Vec<Entry>,
}

impl Packer<'_> {
    fn file(&mut self, path: PathBuf, bytes: Vec<u8>) {
        self.entries.push(Entry { path, mode: 0o644, content: Content::Bytes(bytes) });
    }

    fn table(
        &mut self,
        specs: &BTreeMap<String, OptionSpec>,
        value: &Value,
        pointer: &str,
    ) -> Result<Value, BundleError> {
        let Value::Object(fields) = value else { return Err(kind(pointer, "a table")) };
        let mut out = serde_json::Map::new();
        for (name, value) in fields {
            let inside = format!("{pointer}/{}", escape(name));
            // What no option declares was refused when the template was read.
            let Some(spec) = specs.get(name) else { return Err(kind(&inside, "an option of this provisioner")) };
            if !value.is_null() {
                out.insert(name.clone(), self.value(&spec.kind, value, &inside)?);
            }
        }
        Ok(Value::Object(out))
    }

    fn value(&mut self, wanted: &OptionKind, value: &Value, pointer: &str) -> Result<Value, BundleError> {
        Ok(match (wanted, value) {
            (OptionKind::Text, Value::String(text)) => {
                let path = format!("inputs/{}", label(pointer));
                self.file(path.clone().into(), text.clone().into_bytes());
                Value::String(format!("{}/{path}", self.directory))
            }
            (OptionKind::Path, Value::String(_)) => {
                let (path, entries) =
                    self.inputs.0.get(pointer).ok_or_else(|| kind(pointer, "an input of the plan"))?;
                self.entries.extend(entries.iter().cloned());
                Value::String(format!("{}/{path}", self.directory))
            }
            (OptionKind::Duration, Value::String(text)) => {
                duration::parse(text).map_err(|_| kind(pointer, "a duration"))?.as_secs().into()
            }
            (OptionKind::Size, Value::String(text)) => {
                text.parse::<ByteSize>().map_err(|_| kind(pointer, "a size"))?.bytes().into()
            }
            (OptionKind::List(item), Value::Array(values)) => {
                let one = |(index, value)| self.value(item, value, &format!("{pointer}/{index}"));
                Value::Array(values.iter().enumerate().map(one).collect::<Result<_, _>>()?)
            }
            (OptionKind::Map(item), Value::Object(values)) => {
                let mut out = serde_json::Map::new();
                for (key, value) in values {
                    out.insert(key.clone(), self.value(item, value, &format!("{pointer}/{}", escape(key)))?);
                }
                Value::Object(out)
            }
            (OptionKind::Table(specs), Value::Object(_)) => self.table(specs, value, pointer)?,
            (OptionKind::String, Value::String(_))
            | (OptionKind::Integer | OptionKind::Duration | OptionKind::Size, Value::Number(_))
            | (OptionKind::Bool, Value::Bool(_)) => value.clone(),
            _ => return Err(kind(pointer, "of the declared type")),
        })
    }
}

fn kind(pointer: &str, expected: &'static str) -> BundleError {
    BundleError::Kind { option: pointer.trim_start_matches('/').to_owned(), expected }
}

/// Where an input lies in the step's directory. It keeps the name it is written with: tools look at extensions, people at
/// messages. (Not the name of what a link leads to: the recipe does not know that one.)
fn place(input: &Input) -> String {
    let name = Path::new(&input.path).file_name().and_then(OsStr::to_str).unwrap_or("input");
    format!("inputs/{}/{name}", label(&input.option))
}

/// A JSON pointer as one file name: `/files/0/source` is `files.0.source`.
fn label(pointer: &str) -> String {
    let mut label = String::new();
    for c in pointer.trim_start_matches('/').chars() {
        match c {
            '/' => label.push('.'),
            c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => label.push(c),
            // Injective, so that two keys of a map never share a file.
            c => {
                let _ = write!(label, "%{:x}%", u32::from(c));
            }
        }
    }
    label
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn inline(entry: &mut Entry) -> Result<(), FsError> {
    if let Content::File { path, bytes } = &entry.content
        && *bytes <= SMALL
    {
        let read = fs::read(path).map_err(|source| FsError::Io { operation: "read", path: path.clone(), source })?;
        entry.content = Content::Bytes(read);
    }
    Ok(())
}

/// Sorts by path and adds the directories that nothing names.
fn with_parents(entries: Vec<Entry>) -> Vec<Entry> {
    let mut all: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    for entry in entries {
        for parent in entry.path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            all.entry(parent.to_owned()).or_insert_with(|| Entry {
                path: parent.to_owned(),
                mode: 0o755,
                content: Content::Directory,
            });
        }
        all.insert(entry.path.clone(), entry);
    }
    all.into_values().collect()
}
