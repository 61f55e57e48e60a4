//! `kiln.lock` beside a template: which AMI its base means, until somebody asks for it to be looked up anew.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use kiln_core::{
    facts::FactError,
    plan::{Ami, AmiWish},
};
use serde::Deserialize;

use crate::failure::Failure;

const FILE: &str = "kiln.lock";
const HEAD: &str =
    "# Made by kiln: what AMIs were meant by name when they were looked up. `kiln plan --relock` looks again.\n";

/// The lock file of one template.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// Region and what was asked for, as one line, to what was found.
    amis: BTreeMap<(String, String), Ami>,
    changed: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    ami: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    region: String,
    wanted: String,
    id: String,
    owner: Option<String>,
    name: Option<String>,
}

impl Lock {
    /// Reads what stands beside `template`; nothing of it, when everything is to be looked up anew.
    pub(crate) fn beside(template: &Path, anew: bool) -> Result<Self, Failure> {
        let path = template.parent().unwrap_or(Path::new("")).join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) if !anew => text,
            Ok(_) => String::new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(kiln_io::fs::failed("read", &path, 0)(error).into()),
        };
        let written: Written = toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("`{}` cannot be read", path.display()))
                .because(error.message().to_owned())
                .hint("delete it; it is written anew")
        })?;
        let amis = written.ami.into_iter().map(|entry| {
            let Entry { region, wanted, id, owner, name } = entry;
            ((region, wanted), Ami { ami: id, owner, name, parent: None })
        });
        Ok(Self { path, amis: amis.collect(), changed: false })
    }

    /// The AMI that is meant: as it was looked up once.
    pub(crate) fn find(&mut self, region: &str, wanted: &AmiWish) -> Result<Ami, FactError> {
        let key = (region.to_owned(), wanted.to_string());
        if let Some(found) = self.amis.get(&key) {
            return Ok(found.clone());
        }
        let found = look_up(region, wanted)?;
        self.amis.insert(key, found.clone());
        self.changed = true;
        Ok(found)
    }

    /// Writes it, if something was looked up.
    pub(crate) fn keep(&self) -> Result<(), Failure> {
        if !self.changed {
            return Ok(());
        }
        Ok(kiln_io::fs::write_atomic(&self.path, self.text().as_bytes(), 0o644)?)
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for ((region, wanted), Ami { ami, owner, name, .. }) in &self.amis {
            let lines = [
                ("region", Some(region)),
                ("wanted", Some(wanted)),
                ("id", Some(ami)),
                ("owner", owner.as_ref()),
                ("name", name.as_ref()),
            ];
            text.push_str("\n[[ami]]\n");
            for (key, value) in lines {
                // What JSON escapes, TOML escapes the same way.
                let Some(value) = value else { continue };
                let _ = writeln!(text, "{key} = {}", serde_json::Value::from(value.as_str()));
            }
        }
        text
    }
}

#[cfg(feature = "aws")]
fn look_up(region: &str, wanted: &AmiWish) -> Result<Ami, FactError> {
    use tokio::runtime::Handle;

    let cancel = tokio_util::sync::CancellationToken::new();
    let work = async {
        let account = kiln_aws::Account::open(crate::verbs::publish::ami::access(&cancel), region).await?;
        account.find_ami(region, wanted).await
    };
    // Templates are resolved without waiting; this is the one thing that is not on this machine.
    let found = tokio::task::block_in_place(|| Handle::current().block_on(work));
    found.map_err(|error: kiln_aws::AwsError| {
        let hint = error.hint();
        let fact = FactError::new(Failure::of(&error).on_one_line());
        hint.into_iter().fold(fact, FactError::with_hint)
    })
}

#[cfg(not(feature = "aws"))]
fn look_up(_: &str, wanted: &AmiWish) -> Result<Ami, FactError> {
    let hint = "build kiln with the cargo feature `aws`, or name the AMI by its id";
    Err(FactError::new(format!("this kiln cannot look up the AMI {wanted}")).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_up_stays_until_it_is_to_be_looked_up_anew() {
        let directory = std::env::temp_dir().join(format!("kiln-lock-{}", &kiln_io::random::nonce()[..8]));
        fs::create_dir_all(&directory).unwrap();
        let template = directory.join("template.toml");
        let wanted = AmiWish::Name { pattern: "debian \"12\" *".to_owned(), owner: "136693071363".to_owned() };
        let found = Ami {
            ami: "ami-0123456789abcdef0".to_owned(),
            owner: Some("136693071363".to_owned()),
            name: Some("debian \"12\" a\\b".to_owned()),
            parent: None,
        };
        let mut lock = Lock::beside(&template, false).unwrap();
        lock.amis.insert(("eu-west-1".to_owned(), wanted.to_string()), found.clone());
        lock.changed = true;
        lock.keep().unwrap();
        assert_eq!(Lock::beside(&template, false).unwrap().find("eu-west-1", &wanted).unwrap(), found);
        assert!(Lock::beside(&template, true).unwrap().amis.is_empty());
        fs::remove_dir_all(directory).unwrap();
    }
}
