//! `kiln key`: the key that signs what is published, and the keys that are trusted.

use std::{
    fs::File,
    io::{self, Read as _},
};

use kiln_io::signing::VerifyingKey;
use kiln_registry::{KeyStore, TrustedKey};

use crate::{
    arguments::{KeyExport, KeyInit, KeyList, KeyRevoke, KeyTrust, KeyVerb},
    calendar::Moment,
    escape::visible,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

/// A public key has about 113 bytes.
const LONGEST: u64 = 64 << 10;

pub(crate) fn run(verb: KeyVerb) -> Outcome {
    let keys = surroundings::keys()?;
    match verb {
        KeyVerb::Init(arguments) => {
            let key = keys.init(&name(arguments), surroundings::seconds())?;
            output::talk(&format!("the key {} of {} signs from now on", key.id.short(), visible(&key.name)));
            output::talk(&format!(
                "  {} is the private half: keep it secret, and a copy of it safe",
                keys.private().display()
            ));
            output::talk("  kiln key export > kiln.pub       for those who are to trust it");
        }
        KeyVerb::Rotate(arguments) => {
            let key = keys.rotate(&name(arguments), surroundings::seconds())?;
            output::talk(&format!("the key {} of {} signs from now on", key.id.short(), visible(&key.name)));
            output::talk("the one before stays trusted; `kiln key revoke` ends that");
        }
        KeyVerb::List(arguments) => list(&keys, &arguments)?,
        KeyVerb::Trust(arguments) => trust(&keys, arguments)?,
        KeyVerb::Revoke(arguments) => revoke(&keys, &arguments)?,
        KeyVerb::Export(arguments) => export(&keys, &arguments)?,
    }
    Ok(Exit::Done)
}

fn name(arguments: KeyInit) -> String {
    arguments.name.unwrap_or_else(surroundings::who)
}

fn list(keys: &KeyStore, arguments: &KeyList) -> Result<(), Failure> {
    let trust = keys.trust()?;
    if arguments.json {
        return output::json(&trust.keys());
    }
    if trust.keys().is_empty() {
        output::talk(
            "no key is trusted; `kiln key init` makes one, `kiln key trust FILE` trusts that of somebody else",
        );
        return Ok(());
    }
    let signs = keys.signer()?.map(|key| key.public().id());
    let heading = ["KEY", "NAME", "SINCE", "STATE"].map(str::to_owned).to_vec();
    let state = |key: &TrustedKey| match &key.revoked {
        Some(revoked) => format!("revoked {}: {}", Moment::of_seconds(revoked.at).minute(), visible(&revoked.reason)),
        None if signs == Some(key.id) => "trusted, signs".to_owned(),
        None => "trusted".to_owned(),
    };
    let rows = trust.keys().iter().map(|key| {
        let since = Moment::of_seconds(key.since).minute();
        vec![key.id.short(), visible(&key.name), since, state(key)]
    });
    output::data(&output::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))
}

fn trust(keys: &KeyStore, arguments: KeyTrust) -> Result<(), Failure> {
    let path = &arguments.file;
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.map_err(|error: io::Error| Failure::from(kiln_io::fs::failed("read", path, 0)(error)))?;
    let public = VerifyingKey::from_pem(&text).map_err(|error| {
        Failure::new(format!("`{}` is no public key to trust", path.display()))
            .because(error.to_string())
            .hint("`kiln key export` prints one")
    })?;
    let file_name = || path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let name = arguments.name.unwrap_or_else(file_name);
    let key = keys.trust_key(&public, &name, &arguments.builders, surroundings::seconds())?;
    output::talk(&format!(
        "the key {} of {} is trusted for {}",
        key.id.short(),
        visible(&key.name),
        visible(&key.builders.join(", "))
    ));
    Ok(())
}

fn revoke(keys: &KeyStore, arguments: &KeyRevoke) -> Result<(), Failure> {
    let key = keys.revoke(&arguments.key, &arguments.reason, surroundings::seconds())?;
    output::talk(&format!(
        "the key {} of {} is revoked; what it signed is not proven any more",
        key.id.short(),
        visible(&key.name)
    ));
    if keys.signer()?.is_some_and(|signer| signer.public().id() == key.id) {
        output::talk("it still signs what is published here: `kiln key rotate` puts another in its place");
    }
    Ok(())
}

fn export(keys: &KeyStore, arguments: &KeyExport) -> Result<(), Failure> {
    let public = match (&arguments.key, keys.signer()?) {
        (Some(key), _) => keys.public(key)?.public,
        (None, Some(signer)) => signer.public().to_pem().map_err(|error| Failure::of(&error))?,
        (None, None) => return Err(Failure::new("there is no key that signs").hint("`kiln key init` makes one")),
    };
    output::data(&public)
}
