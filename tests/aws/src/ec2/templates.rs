//! Launch templates and their numbered versions.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::moment::Moment;

use crate::{
    ec2::{
        filters::{Filters, Page},
        names::check,
        tags::{self, specified},
    },
    form::Form,
    refusal::Refusal,
    world::{Tags, World},
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) default: u64,
    created: Moment,
    /// Numbers are never used twice.
    pub(crate) latest: u64,
    pub(crate) versions: BTreeMap<u64, Version>,
}

#[derive(Debug, Clone)]
pub(crate) struct Version {
    description: String,
    /// The parameters of `RunInstances`.
    pub(crate) data: Form,
    created: Moment,
}

impl Template {
    /// Whether one of the newest `depth` versions launches this image.
    pub(crate) fn uses(&self, image: &str, depth: usize) -> bool {
        let mut newest = self.versions.values().rev().take(depth);
        newest.any(|version| version.data.pairs().any(|(key, value)| key == "ImageId" && value == image))
    }

    pub(crate) fn number(&self, version: Option<&str>) -> Option<u64> {
        match version {
            None | Some("$Default") => Some(self.default),
            Some("$Latest") => self.versions.keys().next_back().copied(),
            Some(number) => number.parse().ok().filter(|number| self.versions.contains_key(number)),
        }
    }
}

/// What a template may say: what `RunInstances` knows, by the first part of a parameter's name.
const DATA: [&str; 17] = [
    "BlockDeviceMapping",
    "DisableApiTermination",
    "EbsOptimized",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "KeyName",
    "MetadataOptions",
    "Monitoring",
    "NetworkInterface",
    "Placement",
    "SecurityGroup",
    "SecurityGroupId",
    "TagSpecification",
    "UserData",
];

fn root(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

fn data(form: &mut Form) -> Result<Form, Refusal> {
    let data = form.under("LaunchTemplateData");
    if let Some((unknown, _)) = data.pairs().find(|(key, _)| !DATA.contains(&root(key))) {
        let message = format!("The parameter LaunchTemplateData.{unknown} is not recognized");
        return Err(Refusal::client("UnknownParameter", message));
    }
    if data.pairs().next().is_none() {
        return Err(Refusal::missing("LaunchTemplateData"));
    }
    Ok(data)
}

impl World {
    /// The template that `LaunchTemplateId` or `LaunchTemplateName` names.
    pub(crate) fn template(&mut self, id: Option<&str>, name: Option<&str>) -> Result<&mut Template, Refusal> {
        if id.is_some() == name.is_some() {
            let message = "Exactly one of LaunchTemplateId and LaunchTemplateName must be specified";
            return Err(Refusal::client("InvalidParameterCombination", message));
        }
        if let Some(id) = id {
            check(id, "lt")?;
        }
        let mut all = self.here().templates.values();
        let found = all.find(|template| id == Some(&template.id) || name == Some(&template.name));
        let found = found.map(|template| template.id.clone()).filter(|id| self.sees(id));
        let missing = || match name {
            Some(name) => Refusal::client(
                "InvalidLaunchTemplateName.NotFoundException",
                format!("At least one of the launch templates specified in the request does not exist: {name}"),
            ),
            None => Refusal::client(
                "InvalidLaunchTemplateId.NotFound",
                format!("The specified launch template, with template ID {}, does not exist.", id.unwrap_or_default()),
            ),
        };
        let found = found.ok_or_else(missing)?;
        self.here().templates.get_mut(&found).ok_or_else(missing)
    }

    /// Adds to a `RunInstances` request what its launch template says and it does not.
    pub(crate) fn apply_template(&mut self, form: &mut Form) -> Result<(), Refusal> {
        if form.has("LaunchTemplate") {
            let mut named = form.under("LaunchTemplate");
            let (id, name) = (named.text("LaunchTemplateId"), named.text("LaunchTemplateName"));
            let version = named.text("Version");
            named.finish()?;
            let template = self.template(id.as_deref(), name.as_deref())?;
            let number = template.number(version.as_deref());
            let found = number.and_then(|number| template.versions.get(&number));
            let data = found.ok_or_else(|| no_version(version.as_deref().unwrap_or_default()))?.data.clone();
            form.complete(&data);
        }
        if let Some(name) = form.peek("ImageId").and_then(|image| image.strip_prefix("resolve:ssm:")).map(str::to_owned)
        {
            let current = self.here().parameters.get(&name).and_then(|parameter| parameter.current());
            let image = current.map(|(_, version)| version.value.clone());
            let message = format!("The parameter {name} does not exist or names no image");
            form.put("ImageId", image.ok_or_else(|| Refusal::client("InvalidParameterValue", message))?);
        }
        Ok(())
    }
}

fn no_version(version: &str) -> Refusal {
    let message = format!("Could not find the specified version {version}.");
    Refusal::client("InvalidLaunchTemplateId.VersionNotFound", message)
}

pub(crate) fn create(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    let name = form.required("LaunchTemplateName")?;
    let description = form.text("VersionDescription").unwrap_or_default();
    let data = data(&mut form)?;
    let tags = specified(&mut form, &["launch-template"])?.remove("launch-template").unwrap_or_default();
    form.finish()?;
    let repeated = world.repeated("CreateLaunchTemplate", token.as_deref(), &request)?;
    if let Some(template) = repeated.and_then(|id| world.here().templates.get(&id).cloned()) {
        write(xml, world, &template);
        return Ok(());
    }
    if world.here().templates.values().any(|template| template.name == name) {
        let message = "Launch template name already in use.";
        return Err(Refusal::client("InvalidLaunchTemplateName.AlreadyExistsException", message));
    }
    let (id, created) = (world.id("lt"), world.now());
    let versions = BTreeMap::from([(1, Version { description, data, created })]);
    let template = Template { id: id.clone(), name, default: 1, created, latest: 1, versions };
    world.note(&id, tags);
    world.remember("CreateLaunchTemplate", token.as_deref(), &request, &id);
    write(xml, world, &template);
    world.here().templates.insert(id, template);
    Ok(())
}

fn write(xml: &mut Xml, world: &mut World, template: &Template) {
    let (account, tags) = (world.account.clone(), world.here().tags(&template.id));
    xml.node("launchTemplate", |xml| write_template(xml, &account, template, &tags));
}

fn write_template(xml: &mut Xml, account: &str, template: &Template, tags: &Tags) {
    xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
    xml.text("createTime", template.created.rfc3339()).text("createdBy", format!("arn:aws:iam::{account}:user/kiln"));
    xml.text("defaultVersionNumber", template.default);
    xml.text("latestVersionNumber", template.versions.keys().next_back().copied().unwrap_or(template.latest));
    tags::write(xml, tags);
}

pub(crate) fn create_version(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let source = form.text("SourceVersion");
    let description = form.text("VersionDescription").unwrap_or_default();
    let mut data = data(&mut form)?;
    form.finish()?;
    let (account, created) = (world.account.clone(), world.now());
    let repeated = world.repeated("CreateLaunchTemplateVersion", token.as_deref(), &request)?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    let number = if let Some(number) = repeated.and_then(|number| number.parse().ok()) {
        number
    } else {
        if let Some(source) = &source {
            let from = template.number(Some(source)).and_then(|number| template.versions.get(&number));
            data.complete(&from.ok_or_else(|| no_version(source))?.data);
        }
        template.latest += 1;
        template.versions.insert(template.latest, Version { description, data, created });
        template.latest
    };
    let template = template.clone();
    if let Some(version) = template.versions.get(&number) {
        xml.node("launchTemplateVersion", |xml| write_version(xml, &account, &template, number, version));
    }
    if !world.created.contains(&template.id) {
        world.created.push(format!("{}:{number}", template.id));
    }
    world.remember("CreateLaunchTemplateVersion", token.as_deref(), &request, &number.to_string());
    Ok(())
}

fn write_version(xml: &mut Xml, account: &str, template: &Template, number: u64, version: &Version) {
    xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
    xml.text("versionNumber", number).text("createTime", version.created.rfc3339());
    xml.maybe("versionDescription", Some(&version.description).filter(|text| !text.is_empty()));
    xml.text("createdBy", format!("arn:aws:iam::{account}:user/kiln"));
    xml.text("defaultVersion", number == template.default);
    xml.node("launchTemplateData", |xml| write_data(xml, "", &version.data));
}

/// A request's parameters as the elements of a reply: `Name.1.Field` becomes `nameSet`, `item`, `field`.
fn write_data(xml: &mut Xml, within: &str, data: &Form) {
    let names: BTreeSet<&str> = data.pairs().map(|(key, _)| root(key)).collect();
    for name in names {
        let mut inside = data.clone();
        let lower = name[..1].to_ascii_lowercase() + &name[1..];
        if let Some(value) = inside.text(name) {
            xml.text(&lower, value);
            continue;
        }
        let items = inside.indexed(name);
        if items.is_empty() {
            xml.node(&lower, |xml| write_data(xml, name, &inside.under(name)));
            continue;
        }
        let set = if within == "NetworkInterface" && name == "SecurityGroupId" {
            "groupSet".to_owned()
        } else {
            lower + "Set"
        };
        let items: Vec<_> = items.iter().map(|at| (inside.text(at), inside.under(at))).collect();
        xml.items(&set, items, |xml, (value, fields)| match value {
            Some(value) => xml.value(value),
            None => write_data(xml, name, &fields),
        });
    }
}

pub(crate) fn modify(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    form.text("ClientToken");
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let default = form.text("SetDefaultVersion").or_else(|| form.text("DefaultVersion"));
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    if let Some(default) = default {
        template.default = template.number(Some(&default)).ok_or_else(|| no_version(&default))?;
    }
    let template = template.clone();
    write(xml, world, &template);
    Ok(())
}

pub(crate) fn describe(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (ids, names) = (form.list("LaunchTemplateId"), form.list("LaunchTemplateName"));
    let filters = Filters::of(&mut form, &["launch-template-name", "create-time"])?;
    let page = Page::of(&mut form, !(ids.is_empty() && names.is_empty()), world.pace.page)?;
    form.finish()?;
    for id in &ids {
        world.template(Some(id), None)?;
    }
    for name in &names {
        world.template(None, Some(name))?;
    }
    let account = world.account.clone();
    let all: Vec<Template> = world.here().templates.values().cloned().collect();
    let mut found = Vec::new();
    for template in all {
        let tags = world.here().tags(&template.id);
        let named = ids.contains(&template.id) || names.contains(&template.name);
        let field =
            |name: &str| vec![if name == "create-time" { template.created.rfc3339() } else { template.name.clone() }];
        let open = ids.is_empty() && names.is_empty();
        if (named || (open && world.sees(&template.id))) && filters.admit(&tags, field) {
            found.push((template, tags));
        }
    }
    let (shown, next) = page.cut(found);
    xml.items("launchTemplates", &shown, |xml, (template, tags)| write_template(xml, &account, template, tags));
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn describe_versions(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let wanted = form.list("LaunchTemplateVersion");
    let filters = Filters::of(&mut form, &["image-id", "is-default-version"])?;
    let page = Page::of(&mut form, !wanted.is_empty(), world.pace.page)?;
    form.finish()?;
    let account = world.account.clone();
    let templates: Vec<Template> = if id.is_none() && name.is_none() {
        if wanted.is_empty() || wanted.iter().any(|version| !version.starts_with('$')) {
            return Err(Refusal::missing("LaunchTemplateId or LaunchTemplateName"));
        }
        world.here().templates.values().cloned().collect()
    } else {
        vec![world.template(id.as_deref(), name.as_deref())?.clone()]
    };
    let mut found = Vec::new();
    for template in &templates {
        let mut numbers = Vec::new();
        for version in &wanted {
            numbers.push(template.number(Some(version)).ok_or_else(|| no_version(version))?);
        }
        if wanted.is_empty() {
            numbers = template.versions.keys().rev().copied().collect();
        }
        for number in numbers {
            let version = &template.versions[&number];
            let field = |name: &str| match name {
                "image-id" => version.data.peek("ImageId").map(str::to_owned).into_iter().collect(),
                _ => vec![(number == template.default).to_string()],
            };
            if filters.admit(&Tags::new(), field) {
                found.push((template, number, version));
            }
        }
    }
    let (shown, next) = page.cut(found);
    xml.items("launchTemplateVersionSet", shown, |xml, (template, number, version)| {
        write_version(xml, &account, template, number, version);
    });
    xml.maybe("nextToken", next);
    Ok(())
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?.clone();
    write(xml, world, &template);
    world.here().templates.remove(&template.id);
    world.forget(&template.id);
    Ok(())
}

pub(crate) fn delete_versions(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let wanted = form.list("LaunchTemplateVersion");
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    let default = template.default.to_string();
    let (mut deleted, mut kept) = (Vec::new(), Vec::new());
    for version in wanted {
        let number = version.parse().ok().filter(|_| version != default);
        match number.and_then(|number| template.versions.remove(&number)) {
            Some(_) => deleted.push(version),
            None => kept.push(version),
        }
    }
    let template = template.clone();
    let item = |xml: &mut Xml, version: String| {
        xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
        xml.text("versionNumber", version);
    };
    world.deleted.extend(deleted.iter().map(|version| format!("{}:{version}", template.id)));
    xml.items("successfullyDeletedLaunchTemplateVersionSet", deleted, item);
    xml.items("unsuccessfullyDeletedLaunchTemplateVersionSet", kept, |xml, version| {
        item(xml, version);
        xml.node("responseError", |xml| {
            xml.text("code", "launchTemplateVersionDoesNotExist")
                .text("message", "It is the default version or does not exist.");
        });
    });
    Ok(())
}
