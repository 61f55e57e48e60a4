//! SSM parameters: put, read, list, delete; image parameters are checked as late as AWS checks them.

use std::collections::BTreeMap;

use kiln_core::moment::Moment;
use serde_json::{Value, json};

use crate::{
    ec2::names::well_formed,
    json::Fields,
    refusal::Refusal,
    server::Answer,
    world::{Progress, Stage, Tags, World},
};

#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) kind: String,
    pub(crate) data_type: String,
    /// By version; the last is the current one.
    pub(crate) versions: BTreeMap<u64, Version>,
}

#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) value: String,
    modified: Moment,
    /// An image parameter changes only once the image was found.
    progress: Progress,
}

impl Parameter {
    pub(crate) fn current(&self) -> Option<(u64, &Version)> {
        let mut ready = self.versions.iter().rev().filter(|(_, version)| version.progress.stage() == Stage::Ready);
        ready.next().map(|(number, version)| (*number, version))
    }
}

pub(crate) fn answer(world: &mut World, action: &str, input: Value) -> Result<Answer, Refusal> {
    let fields = Fields::of(input)?;
    let body = match action {
        "PutParameter" => put(world, fields),
        "GetParameter" => get(world, fields),
        "GetParameters" => get_many(world, fields),
        "GetParametersByPath" => by_path(world, fields),
        "DeleteParameter" => delete(world, fields),
        _ => Err(Refusal::client("UnknownOperationException", format!("the fake has no SSM action {action}"))),
    }?;
    Ok(Answer::new("application/x-amz-json-1.1", body.to_string()))
}

fn put(world: &mut World, mut fields: Fields) -> Result<Value, Refusal> {
    let (name, value) = (fields.required("Name")?, fields.required("Value")?);
    let kind = fields.text("Type")?;
    let data_type = fields.text("DataType")?.unwrap_or_else(|| "text".to_owned());
    let overwrite = fields.flag("Overwrite")? == Some(true);
    let tier = fields.text("Tier")?.unwrap_or_else(|| "Standard".to_owned());
    fields.text("Description")?;
    let tags = fields.tags("Tags")?;
    fields.finish()?;
    check_name(&name)?;
    if overwrite && !tags.is_empty() {
        return Err(invalid("Invalid request: tags and overwrite can't be used together."));
    }
    if value.len() > if tier == "Standard" { 4096 } else { 8192 } {
        return Err(invalid("Standard tier parameters support a maximum parameter value of 4096 characters."));
    }
    let (modified, mut progress) = (world.now(), Progress::DONE);
    match data_type.as_str() {
        "text" => {}
        "aws:ec2:image" => {
            if !well_formed(&value, "ami") {
                return Err(invalid(format!("The following parameter value: {value} is not a valid AMI id.")));
            }
            progress = if world.here().images.contains_key(&value) { world.progress() } else { Progress::NEVER };
        }
        _ => return Err(invalid(format!("The following data type is not supported: {data_type}"))),
    }
    let here = world.here();
    let fresh = !here.parameters.contains_key(&name);
    if !fresh && !overwrite {
        let message =
            "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.";
        return Err(Refusal::client("ParameterAlreadyExists", message));
    }
    let kind = match (kind, here.parameters.get(&name)) {
        (Some(kind), Some(known)) if kind != known.kind => {
            return Err(Refusal::client("HierarchyTypeMismatchException", "The type of a parameter cannot change."));
        }
        (Some(kind), _) => kind,
        (None, Some(known)) => known.kind.clone(),
        (None, None) => return Err(invalid("A parameter type is required when you create a parameter.")),
    };
    if !["String", "StringList", "SecureString"].contains(&kind.as_str()) {
        return Err(Refusal::client(
            "UnsupportedParameterType",
            format!("The parameter type {kind} is not supported."),
        ));
    }
    let parameter = here.parameters.entry(name.clone());
    let parameter =
        parameter.or_insert_with(|| Parameter { kind, data_type: String::new(), versions: BTreeMap::new() });
    parameter.data_type = data_type;
    let number = parameter.versions.keys().next_back().map_or(1, |last| last + 1);
    parameter.versions.insert(number, Version { value, modified, progress });
    if parameter.versions.len() > 100 {
        parameter.versions.pop_first();
    }
    if fresh {
        world.created.push(name.clone());
        world.here().tags.insert(name, tags);
    }
    Ok(json!({ "Version": number, "Tier": tier }))
}

fn get(world: &mut World, mut fields: Fields) -> Result<Value, Refusal> {
    let name = fields.required("Name")?;
    fields.flag("WithDecryption")?;
    fields.finish()?;
    Ok(json!({ "Parameter": found(world, &name)? }))
}

fn get_many(world: &mut World, mut fields: Fields) -> Result<Value, Refusal> {
    let names = fields.texts("Names")?;
    fields.flag("WithDecryption")?;
    fields.finish()?;
    if names.is_empty() || names.len() > 10 {
        return Err(invalid("Names must hold between 1 and 10 names."));
    }
    let (mut parameters, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        match found(world, &name) {
            Ok(parameter) => parameters.push(parameter),
            Err(_) => unknown.push(name),
        }
    }
    Ok(json!({ "Parameters": parameters, "InvalidParameters": unknown }))
}

fn by_path(world: &mut World, mut fields: Fields) -> Result<Value, Refusal> {
    let path = fields.required("Path")?;
    let recursive = fields.flag("Recursive")? == Some(true);
    fields.flag("WithDecryption")?;
    let most = fields.number("MaxResults")?.unwrap_or(10);
    let from = fields.text("NextToken")?.unwrap_or_default();
    fields.finish()?;
    if !path.starts_with('/') || !(1..=10).contains(&most) {
        return Err(invalid("The path must begin with a slash, and MaxResults be between 1 and 10."));
    }
    let prefix = format!("{}/", path.trim_end_matches('/'));
    let names: Vec<String> = world.here().parameters.keys().filter(|name| **name > from).cloned().collect();
    let mut inside = names
        .into_iter()
        .filter(|name| name.strip_prefix(&prefix).is_some_and(|rest| recursive || !rest.contains('/')));
    let page: Vec<String> = inside.by_ref().take(usize::try_from(most).unwrap_or(10)).collect();
    let more = inside.next().is_some();
    let parameters: Vec<Value> = page.iter().filter_map(|name| found(world, name).ok()).collect();
    let mut body = json!({ "Parameters": parameters });
    if let (true, Some(last)) = (more, page.last()) {
        body["NextToken"] = last.clone().into();
    }
    Ok(body)
}

fn delete(world: &mut World, mut fields: Fields) -> Result<Value, Refusal> {
    let name = fields.required("Name")?;
    fields.finish()?;
    if world.here().parameters.remove(&name).is_none() {
        return Err(not_found(&name));
    }
    world.forget(&name);
    Ok(json!({}))
}

/// A name, or a name with `:version`.
fn found(world: &mut World, wanted: &str) -> Result<Value, Refusal> {
    let (region, account) = (world.region.clone(), world.account.clone());
    let (name, selector) = wanted.split_once(':').map_or((wanted, None), |(name, version)| (name, Some(version)));
    let parameter = world.here().parameters.get_mut(name).ok_or_else(|| not_found(wanted))?;
    for version in parameter.versions.values_mut() {
        version.progress.look();
    }
    let (number, version) = match selector {
        None => parameter.current().ok_or_else(|| not_found(wanted))?,
        Some(selector) => {
            let number = selector.parse().ok();
            let version = number.and_then(|number| Some((number, parameter.versions.get(&number)?)));
            let version = version.filter(|(_, version)| version.progress.stage() == Stage::Ready);
            let message = format!("Systems Manager could not find version {selector} of {name}.");
            version.ok_or_else(|| Refusal::client("ParameterVersionNotFound", message))?
        }
    };
    let slash = if name.starts_with('/') { "" } else { "/" };
    let mut reply = json!({
        "Name": name, "Type": parameter.kind, "Value": version.value, "Version": number,
        "LastModifiedDate": version.modified.seconds(), "DataType": parameter.data_type,
        "ARN": format!("arn:aws:ssm:{region}:{account}:parameter{slash}{name}"),
    });
    if let Some(selector) = selector {
        reply["Selector"] = format!(":{selector}").into();
    }
    Ok(reply)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    if name.starts_with("/aws/") {
        return Err(Refusal::client("AccessDeniedException", format!("No access to reserved parameter name: {name}.")));
    }
    let root = name.trim_start_matches('/').split('/').next().unwrap_or_default().to_ascii_lowercase();
    if name.is_empty() || !name.chars().all(legal) || root.starts_with("aws") || root.starts_with("ssm") {
        return Err(invalid(format!(
            "Parameter name: can't be prefixed with \"aws\" or \"ssm\", and only consists of a-zA-Z0-9_.-/: {name}"
        )));
    }
    if name.matches('/').count() > 15 {
        return Err(Refusal::client("HierarchyLevelLimitExceededException", "A hierarchy has at most 15 levels."));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::client("ValidationException", message)
}

fn not_found(name: &str) -> Refusal {
    Refusal::client("ParameterNotFound", format!("Parameter {name} not found."))
}

impl crate::Fake {
    /// What a parameter says now.
    pub fn parameter(&self, account: &str, region: &str, name: &str) -> Option<String> {
        let world = crate::server::lock(&self.shared().world);
        let parameter = world.regions.get(&(region.to_owned(), account.to_owned()))?.parameters.get(name)?;
        Some(parameter.current()?.1.value.clone())
    }

    /// A parameter that AWS itself publishes, such as the newest image of a distribution.
    pub fn public_parameter(&self, account: &str, region: &str, name: &str, value: &str) {
        let mut world = crate::server::lock(&self.shared().world);
        world.enter(account, region, None);
        let version = Version { value: value.to_owned(), modified: world.now(), progress: Progress::DONE };
        let parameter = Parameter {
            kind: "String".to_owned(),
            data_type: "aws:ec2:image".to_owned(),
            versions: BTreeMap::from([(1, version)]),
        };
        let here = world.here();
        here.parameters.insert(name.to_owned(), parameter);
        here.tags.insert(name.to_owned(), Tags::new());
    }
}
