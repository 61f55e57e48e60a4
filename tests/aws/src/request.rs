//! Which service a request is for, who sent it, from where, and what it asks.

use bytes::Bytes;
use hyper::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::{form::Form, refusal::Refusal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Ec2,
    Ebs,
    Ssm,
    AutoScaling,
    Sts,
}

impl Service {
    const ALL: [Self; 5] = [Self::Ec2, Self::Ebs, Self::Ssm, Self::AutoScaling, Self::Sts];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// As in signatures and in the names of rights.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Ebs => "ebs",
            Self::Ssm => "ssm",
            Self::AutoScaling => "autoscaling",
            Self::Sts => "sts",
        }
    }
}

/// The credential scope of a signature (version 4). The signature itself is taken on trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) access_key: String,
    pub(crate) region: String,
    pub(crate) service: Service,
}

impl Caller {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let header = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let unsigned = || Refusal::new(403, "MissingAuthenticationToken", "Request is missing Authentication Token");
        let scope = header.strip_prefix("AWS4-HMAC-SHA256 Credential=").ok_or_else(unsigned)?;
        let mut scope = scope.split(',').next().unwrap_or_default().split('/');
        let (key, _date, region) = (scope.next(), scope.next(), scope.next());
        let (Some(access_key), Some(region), Some(service)) = (key, region, scope.next()) else {
            return Err(unsigned());
        };
        let unknown = || Refusal::client("InvalidClientTokenId", format!("the fake has no service {service}"));
        let service = Service::named(service).ok_or_else(unknown)?;
        Ok(Self { access_key: access_key.to_owned(), region: region.to_owned(), service })
    }
}

/// What a request asks, as far as its protocol says.
#[derive(Debug)]
pub(crate) enum Input {
    Form(Form),
    Json(Value),
    Rest(Rest),
}

/// A request of EBS direct.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Empty only for `StartSnapshot`.
    pub(crate) snapshot: String,
    pub(crate) block: Option<String>,
    pub(crate) query: Form,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Rest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The name of the action and its input.
pub(crate) fn decode(
    service: Service,
    method: &Method,
    uri: &Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(String, Input), Refusal> {
    match service {
        Service::Ec2 | Service::AutoScaling | Service::Sts => {
            let text = std::str::from_utf8(&body).unwrap_or_default();
            let mut form = Form::parse(text)?;
            let action = form.required("Action")?;
            form.required("Version")?;
            Ok((action, Input::Form(form)))
        }
        Service::Ssm => {
            let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let action = target.strip_prefix("AmazonSSM.").unwrap_or(target).to_owned();
            let input = serde_json::from_slice(&body);
            let input = input.map_err(|error| Refusal::client("SerializationException", error.to_string()))?;
            Ok((action, Input::Json(input)))
        }
        Service::Ebs => {
            let path = uri.path().trim_matches('/').split('/');
            let path: Vec<String> =
                path.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let (action, snapshot, block) = match (method.as_str(), &path[..]) {
                ("POST", ["snapshots"]) => ("StartSnapshot", "", None),
                ("POST", ["snapshots", "completion", snapshot]) => ("CompleteSnapshot", *snapshot, None),
                ("PUT", ["snapshots", snapshot, "blocks", block]) => ("PutSnapshotBlock", *snapshot, Some(*block)),
                ("GET", ["snapshots", snapshot, "blocks", block]) => ("GetSnapshotBlock", *snapshot, Some(*block)),
                ("GET", ["snapshots", snapshot, "blocks"]) => ("ListSnapshotBlocks", *snapshot, None),
                ("GET", ["snapshots", snapshot, "changedblocks"]) => ("ListChangedBlocks", *snapshot, None),
                _ => return Err(Refusal::new(404, "UnknownOperationException", format!("{method} {uri}"))),
            };
            let query = Form::parse(uri.query().unwrap_or_default())?;
            let (snapshot, block) = (snapshot.to_owned(), block.map(str::to_owned));
            Ok((action.to_owned(), Input::Rest(Rest { snapshot, block, query, headers, body })))
        }
    }
}
