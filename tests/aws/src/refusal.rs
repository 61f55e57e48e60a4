//! What a service answers instead of doing what it was asked for.

use serde_json::json;

use crate::{request::Service, xml::Xml};

/// An error in the words of AWS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
    /// The finer reason that EBS direct gives.
    pub reason: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), reason: None }
    }

    /// The caller's mistake: status 400.
    pub(crate) fn client(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterValue", message)
    }

    pub(crate) fn missing(parameter: &str) -> Self {
        Self::client("MissingParameter", format!("The request must contain the parameter {parameter}"))
    }

    /// EBS direct's refusal of a value.
    pub(crate) fn block(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), ..Self::client("ValidationException", message) }
    }

    pub(crate) fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// A service in a region that is not enabled knows no caller.
    pub(crate) fn nobody(service: Service) -> Self {
        match service {
            Service::Ec2 => {
                Self::new(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
            }
            Service::Sts | Service::AutoScaling => {
                Self::new(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
            }
            Service::Ebs | Service::Ssm => {
                Self::new(403, "UnrecognizedClientException", "The security token included in the request is invalid.")
            }
        }
    }

    /// An action that the fake does not have.
    pub(crate) fn unknown_action(action: &str) -> Self {
        Self::client("InvalidAction", format!("The action {action} is not valid for this web service."))
    }

    /// Content type, headers and body as the service's protocol has them.
    pub(crate) fn render(
        &self,
        service: Service,
        request_id: &str,
    ) -> (&'static str, Vec<(&'static str, String)>, String) {
        let mut xml = Xml::default();
        match service {
            Service::Ec2 => {
                xml.node("Response", |xml| {
                    xml.node("Errors", |xml| {
                        xml.node("Error", |xml| {
                            xml.text("Code", &self.code).text("Message", &self.message);
                        });
                    });
                    xml.text("RequestID", request_id);
                });
                ("text/xml;charset=UTF-8", Vec::new(), xml.document())
            }
            Service::AutoScaling | Service::Sts => {
                let to_blame = if self.status < 500 { "Sender" } else { "Receiver" };
                xml.node("ErrorResponse", |xml| {
                    xml.node("Error", |xml| {
                        xml.text("Type", to_blame).text("Code", &self.code).text("Message", &self.message);
                    });
                    xml.text("RequestId", request_id);
                });
                ("text/xml", Vec::new(), xml.document())
            }
            Service::Ssm => {
                let body = json!({ "__type": self.code, "message": self.message });
                ("application/x-amz-json-1.1", Vec::new(), body.to_string())
            }
            Service::Ebs => {
                let mut body = json!({ "Message": self.message });
                if let Some(reason) = self.reason {
                    body["Reason"] = reason.into();
                }
                ("application/json", vec![("x-amzn-ErrorType", self.code.clone())], body.to_string())
            }
        }
    }
}
