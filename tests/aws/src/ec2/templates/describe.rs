//! What EC2 says of launch templates.

use crate::{
    ec2::{
        filters::{Filters, Page},
        tags,
        templates::{Template, Version, data::write_data, no_version},
    },
    form::Form,
    refusal::Refusal,
    world::{Tags, World},
    xml::Xml,
};

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

pub(super) fn write_template(xml: &mut Xml, account: &str, template: &Template, tags: &Tags) {
    xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
    xml.text("createTime", template.created.rfc3339()).text("createdBy", format!("arn:aws:iam::{account}:user/kiln"));
    xml.text("defaultVersionNumber", template.default);
    xml.text("latestVersionNumber", template.versions.keys().next_back().copied().unwrap_or(template.latest));
    tags::write(xml, tags);
}

pub(super) fn write_version(xml: &mut Xml, account: &str, template: &Template, number: u64, version: &Version) {
    xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
    xml.text("versionNumber", number).text("createTime", version.created.rfc3339());
    xml.maybe("versionDescription", Some(&version.description).filter(|text| !text.is_empty()));
    xml.text("createdBy", format!("arn:aws:iam::{account}:user/kiln"));
    xml.text("defaultVersion", number == template.default);
    xml.node("launchTemplateData", |xml| write_data(xml, "", &version.data));
}
