//! Requests as they go over the wire, without any SDK: the signature is of the right shape and of no worth.

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) const REGION: &str = "us-east-1";

#[derive(Debug)]
pub(crate) struct Wire {
    http: Client,
    url: String,
}

impl Wire {
    pub(crate) fn to(url: String) -> Self {
        Self { http: Client::new(), url }
    }

    fn request(&self, method: Method, service: &str, path: &str) -> RequestBuilder {
        let scope =
            format!("AWS4-HMAC-SHA256 Credential=AKIAKILN/20260101/{REGION}/{service}/aws4_request, Signature=0");
        self.http.request(method, format!("{}{path}", self.url)).header("authorization", scope)
    }

    /// Status and body of an EC2 action.
    pub(crate) async fn ec2(&self, action: &str, fields: &[(&str, &str)]) -> reqwest::Result<(u16, String)> {
        let mut body = format!("Action={action}&Version=2016-11-15");
        for (name, value) in fields {
            body.extend(["&", name, "=", value]);
        }
        let response = self.request(Method::POST, "ec2", "/").body(body).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    pub(crate) async fn start(&self, fields: Value) -> Value {
        let request = self.request(Method::POST, "ebs", "/snapshots").body(fields.to_string());
        json_of(request.send().await.expect("an answer")).await
    }

    pub(crate) async fn put(&self, snapshot: &str, index: u32, block: Vec<u8>) -> u16 {
        let path = format!("/snapshots/{snapshot}/blocks/{index}");
        let request = self.request(Method::PUT, "ebs", &path).header("x-amz-data-length", block.len().to_string());
        let checksum = BASE64.encode(Sha256::digest(&block));
        let request = request.header("x-amz-checksum", checksum).header("x-amz-checksum-algorithm", "SHA256");
        request.body(block).send().await.expect("an answer").status().as_u16()
    }

    pub(crate) async fn complete(&self, snapshot: &str, count: usize, checksum: &str) -> u16 {
        let request = self.request(Method::POST, "ebs", &format!("/snapshots/completion/{snapshot}"));
        let request = request.header("x-amz-changedblockscount", count.to_string()).header("x-amz-checksum", checksum);
        let request = request.header("x-amz-checksum-algorithm", "SHA256");
        let request = request.header("x-amz-checksum-aggregation-method", "LINEAR");
        request.send().await.expect("an answer").status().as_u16()
    }

    /// All pages of a list of blocks.
    pub(crate) async fn pages(&self, path: &str, name: &str) -> Vec<Value> {
        let (mut blocks, mut token) = (Vec::new(), None::<String>);
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = token.map_or_else(String::new, |token| format!("{join}pageToken={}", token.replace('=', "%3D")));
            let request = self.request(Method::GET, "ebs", &format!("{path}{page}"));
            let mut answer = json_of(request.send().await.expect("an answer")).await;
            blocks.extend(answer[name].as_array().expect("a list").clone());
            match answer["NextToken"].take() {
                Value::String(next) => token = Some(next),
                _ => return blocks,
            }
        }
    }

    pub(crate) async fn block(&self, snapshot: &str, index: u32, token: &str) -> Vec<u8> {
        let path = format!("/snapshots/{snapshot}/blocks/{index}?blockToken={}", token.replace('=', "%3D"));
        let response = self.request(Method::GET, "ebs", &path).send().await.expect("an answer");
        let sum = response.headers()["x-amz-checksum"].to_str().expect("text").to_owned();
        let bytes = response.bytes().await.expect("a block").to_vec();
        assert_eq!(sum, BASE64.encode(Sha256::digest(&bytes)));
        bytes
    }
}

async fn json_of(response: Response) -> Value {
    let status = response.status();
    let body = response.text().await.expect("a body");
    let mut value: Value = serde_json::from_str(&body).unwrap_or_else(|_| json!({ "body": body }));
    value["status"] = status.as_u16().into();
    value
}
