//! Tags: at creation, afterwards, and the question who has which.

use std::collections::BTreeMap;

use crate::{
    ec2::{
        filters::{Filters, Page},
        names::{kind_of, not_found},
    },
    form::Form,
    refusal::Refusal,
    world::{Region, Tags, World},
    xml::Xml,
};

/// The tags of a `TagSpecification`, by the kind of resource; a kind that the call does not create is refused.
pub(crate) fn specified(form: &mut Form, kinds: &[&str]) -> Result<BTreeMap<String, Tags>, Refusal> {
    let mut specified: BTreeMap<String, Tags> = BTreeMap::new();
    for at in form.indexed("TagSpecification") {
        let kind = form.required(&format!("{at}.ResourceType"))?;
        if !kinds.contains(&kind.as_str()) {
            return Err(Refusal::invalid(format!(
                "'{kind}' is not a valid taggable resource type for this operation."
            )));
        }
        if specified.insert(kind.clone(), given(form, &format!("{at}.Tag"))?).is_some() {
            return Err(Refusal::invalid(format!("Tag specification resource type '{kind}' is given twice")));
        }
    }
    Ok(specified)
}

fn given(form: &mut Form, name: &str) -> Result<Tags, Refusal> {
    let mut tags = Tags::new();
    for at in form.indexed(name) {
        let key = form.required(&format!("{at}.Key"))?;
        let value = form.text(&format!("{at}.Value")).unwrap_or_default();
        if tags.insert(key.clone(), value).is_some() {
            return Err(Refusal::invalid(format!("Duplicate tag key '{key}' specified.")));
        }
    }
    check_tags(&tags)?;
    Ok(tags)
}

pub(crate) fn check_tags(tags: &Tags) -> Result<(), Refusal> {
    for (key, value) in tags {
        if key.starts_with("aws:") {
            return Err(Refusal::invalid("Tag keys starting with 'aws:' are reserved for internal use"));
        }
        if key.chars().count() > 127 || value.chars().count() > 255 {
            return Err(Refusal::invalid(format!("Tag '{key}' exceeds the maximum length")));
        }
    }
    if tags.len() > 50 {
        return Err(Refusal::client("TagLimitExceeded", "More than 50 tags specified"));
    }
    Ok(())
}

pub(crate) fn write(xml: &mut Xml, tags: &Tags) {
    xml.items("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key).text("value", value);
    });
}

impl Region {
    fn has(&self, id: &str) -> bool {
        match kind_of(id) {
            Some("image") => self.images.contains_key(id),
            Some("snapshot") => self.snapshots.contains_key(id),
            Some("instance") => self.instances.contains_key(id),
            Some("volume") => self.volumes.contains_key(id),
            Some("security-group") => self.groups.contains_key(id),
            Some("key-pair") => self.key_pairs.values().any(|key| key.id == id),
            Some("launch-template") => self.templates.contains_key(id),
            Some("subnet" | "vpc") => self.network.has(id),
            _ => false,
        }
    }
}

fn targets(world: &mut World, form: &mut Form) -> Result<Vec<String>, Refusal> {
    let ids = form.list("ResourceId");
    if ids.is_empty() {
        return Err(Refusal::missing("resourceIdSet"));
    }
    for id in &ids {
        if kind_of(id).is_none() {
            return Err(Refusal::client("InvalidID", format!("The ID '{id}' is not valid")));
        }
        if !world.here().has(id) || !world.sees(id) {
            return Err(not_found(id));
        }
    }
    Ok(ids)
}

pub(crate) fn create(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let tags = given(&mut form, "Tag")?;
    let ids = targets(world, &mut form)?;
    form.finish()?;
    if tags.is_empty() {
        return Err(Refusal::missing("tagSet"));
    }
    for id in &ids {
        let mut all = world.here().tags(id);
        all.extend(tags.clone());
        check_tags(&all)?;
    }
    for id in &ids {
        world.here().tags.entry(id.clone()).or_default().extend(tags.clone());
    }
    xml.text("return", true);
    Ok(())
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let mut wanted = Vec::new();
    for at in form.indexed("Tag") {
        wanted.push((form.required(&format!("{at}.Key"))?, form.text(&format!("{at}.Value"))));
    }
    let ids = targets(world, &mut form)?;
    form.finish()?;
    for id in &ids {
        // A value that is given must be the tag's; without any tag, all go.
        world.here().tags.entry(id.clone()).or_default().retain(|key, value| {
            let named = |(wanted, only): &(String, Option<String>)| {
                wanted == key && only.as_ref().is_none_or(|only| only == value)
            };
            !(wanted.is_empty() || wanted.iter().any(named))
        });
    }
    xml.text("return", true);
    Ok(())
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let filters = Filters::of(&mut form, &["key", "value", "resource-id", "resource-type"])?;
    let page = Page::of(&mut form, false, world.pace.page)?;
    form.finish()?;
    let ids: Vec<String> = world.here().tags.keys().cloned().collect();
    let mut found = Vec::new();
    for id in ids {
        let Some(kind) = kind_of(&id) else { continue };
        let tags = world.here().tags(&id);
        let admitted = |key: &str, value: &str| {
            filters.admit(&tags, |name| {
                let field = match name {
                    "key" => key,
                    "value" => value,
                    "resource-id" => &id,
                    _ => kind,
                };
                vec![field.to_owned()]
            })
        };
        let rows = tags.iter().filter(|(key, value)| admitted(key, value));
        let rows: Vec<_> = rows.map(|(key, value)| (id.clone(), kind, key.clone(), value.clone())).collect();
        if !rows.is_empty() && world.sees(&id) {
            found.extend(rows);
        }
    }
    let (rows, next) = page.cut(found);
    xml.items("tagSet", rows, |xml, (id, kind, key, value)| {
        xml.text("resourceId", id).text("resourceType", kind).text("key", key).text("value", value);
    });
    xml.maybe("nextToken", next);
    Ok(())
}
