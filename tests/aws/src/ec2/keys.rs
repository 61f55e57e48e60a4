//! Key pairs: imported, found, deleted.

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD as BASE64, BASE64_STANDARD_NO_PAD as BARE},
};
use kiln_core::moment::Moment;
use sha2::{Digest as _, Sha256};

use crate::{
    ec2::{
        filters::Filters,
        tags::{self, specified},
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct KeyPair {
    pub(crate) id: String,
    pub(crate) name: String,
    /// As in `authorized_keys`.
    pub(crate) public: String,
    created: Moment,
}

impl KeyPair {
    fn kind(&self) -> &'static str {
        if self.public.starts_with("ssh-rsa ") { "rsa" } else { "ed25519" }
    }

    /// SHA-256 for both kinds; AWS gives MD5 for an RSA key.
    fn fingerprint(&self) -> String {
        let key = self.public.split(' ').nth(1).and_then(|key| BASE64.decode(key).ok());
        BARE.encode(Sha256::digest(key.unwrap_or_default()))
    }
}

pub(crate) fn import(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (name, material) = (form.required("KeyName")?, form.required("PublicKeyMaterial")?);
    let tags = specified(&mut form, &["key-pair"])?.remove("key-pair").unwrap_or_default();
    form.finish()?;
    let line = BASE64.decode(&material).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let public = line.trim().to_owned();
    let mut words = public.split(' ');
    let known = matches!(words.next(), Some("ssh-rsa" | "ssh-ed25519"));
    if !known || words.next().and_then(|key| BASE64.decode(key).ok()).is_none_or(|key| key.len() < 40) {
        return Err(Refusal::client("InvalidKey.Format", "Key is not in valid OpenSSH public key format"));
    }
    if world.here().key_pairs.contains_key(&name) {
        return Err(Refusal::client("InvalidKeyPair.Duplicate", format!("The keypair '{name}' already exists")));
    }
    let key = KeyPair { id: world.id("key"), name: name.clone(), public, created: world.now() };
    xml.text("keyPairId", &key.id).text("keyName", &name).text("keyFingerprint", key.fingerprint());
    tags::write(xml, &tags);
    world.note(&key.id, tags);
    world.here().key_pairs.insert(name, key);
    Ok(())
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (names, ids) = (form.list("KeyName"), form.list("KeyPairId"));
    let with_key = form.flag("IncludePublicKey")? == Some(true);
    let filters = Filters::of(&mut form, &["key-pair-id", "key-name", "fingerprint"])?;
    form.finish()?;
    let mut found = Vec::new();
    let all: Vec<KeyPair> = world.here().key_pairs.values().cloned().collect();
    for key in all {
        let tags = world.here().tags(&key.id);
        let field = |name: &str| match name {
            "key-pair-id" => vec![key.id.clone()],
            "key-name" => vec![key.name.clone()],
            _ => vec![key.fingerprint()],
        };
        let wanted = (names.is_empty() && ids.is_empty()) || names.contains(&key.name) || ids.contains(&key.id);
        if wanted && filters.admit(&tags, field) && world.sees(&key.id) {
            found.push((key, tags));
        }
    }
    let known = |wanted: &String| found.iter().any(|(key, _)| key.name == *wanted || key.id == *wanted);
    if let Some(missing) = names.iter().chain(&ids).find(|wanted| filters.is_empty() && !known(wanted)) {
        return Err(Refusal::client("InvalidKeyPair.NotFound", format!("The key pair '{missing}' does not exist")));
    }
    xml.items("keySet", &found, |xml, (key, tags)| {
        xml.text("keyPairId", &key.id).text("keyName", &key.name).text("keyType", key.kind());
        xml.text("keyFingerprint", key.fingerprint()).text("createTime", key.created.rfc3339());
        xml.maybe("publicKey", with_key.then_some(&key.public));
        tags::write(xml, tags);
    });
    Ok(())
}

/// Says `true` also where there is none, as AWS does.
pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (name, id) = (form.text("KeyName"), form.text("KeyPairId"));
    form.finish()?;
    if name.is_none() && id.is_none() {
        return Err(Refusal::missing("KeyName or KeyPairId"));
    }
    let keys = world.here().key_pairs.values();
    let mut found = keys.filter(|key| name.as_ref() == Some(&key.name) || id.as_ref() == Some(&key.id));
    xml.text("return", true);
    if let Some(key) = found.next().cloned() {
        xml.text("keyPairId", &key.id);
        world.here().key_pairs.remove(&key.name);
        world.forget(&key.id);
    }
    Ok(())
}
