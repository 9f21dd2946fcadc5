//! Streams through the gateway, with gRPC's own reflection as the service: it has a stream both ways.

use std::time::Duration;

use futures::channel::mpsc;
use http_body_util::{BodyExt, Full};
use prost_reflect::DescriptorPool;
use tonic::Code;
use tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET;

use super::*;
use crate::json::routes::Service;

const METHOD: &str = "grpc.reflection.v1.ServerReflection.ServerReflectionInfo";

const SERVICE: Service = Service {
    name: "grpc.reflection.v1.ServerReflection",
    paths: &[("reflect", "ServerReflectionInfo")],
};

fn gateway(held: &[&str]) -> JsonGateway<impl Calls> {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let routes = Routes::new(&pool, &[SERVICE], held);
    JsonGateway::new(service, routes, GatewayConfig::default(), Counter::noop())
}

fn post<R>(body: R) -> Request<R> {
    Request::post("/v3/reflect").body(body).unwrap()
}

fn full(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

/// How long a line may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The next line of a stream.
async fn next(body: &mut Body) -> Option<String> {
    let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
    let frame = frame.expect("neither a line nor an end has come")?.unwrap().into_data().unwrap();
    Some(String::from_utf8(frame.to_vec()).unwrap())
}

const ASKED: &str = r#"{"list_services":""}"#;
const ANSWERED: &str = "{\"result\":{\"original_request\":{\"list_services\":\"\"},\
                        \"list_services_response\":{\"service\":\
                        [{\"name\":\"grpc.reflection.v1.ServerReflection\"}]}}}\n";

#[tokio::test]
async fn every_object_of_a_body_is_a_request_and_every_answer_a_line() {
    let gateway = gateway(&[]);
    let response = gateway.answer(post(full(r#" {"list_services":""}{"listServices":""} "#))).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(String::from_utf8(body.to_vec()).unwrap(), ANSWERED.repeat(2));
}

#[tokio::test]
async fn answers_come_while_the_body_goes_on() {
    let gateway = gateway(&[]);
    let (client, body) = mpsc::unbounded();
    let body = StreamBody::new(body.map(|text: &'static str| {
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes())))
    }));
    client.unbounded_send(ASKED).unwrap();
    let mut answers = gateway.answer(post(body)).await.into_body();
    for _ in 0..3 {
        assert_eq!(next(&mut answers).await.unwrap(), ANSWERED);
        let (one, other) = ASKED.split_at(7);
        client.unbounded_send(one).unwrap();
        client.unbounded_send(other).unwrap();
    }
    assert_eq!(next(&mut answers).await.unwrap(), ANSWERED);
    client.unbounded_send(" {]").unwrap();
    let last = next(&mut answers).await.unwrap();
    assert!(
        last.starts_with(r#"{"error":{"grpc_code":3,"http_code":400,"message":"json: "#),
        "{last}"
    );
    assert_eq!(next(&mut answers).await, None);
}

#[tokio::test]
async fn a_held_stream_outlives_its_body_and_another_does_not() {
    let mut answers = gateway(&[METHOD]).answer(post(full(ASKED))).await.into_body();
    assert_eq!(next(&mut answers).await.unwrap(), ANSWERED);
    // Polled until nothing moves any more, as it would be for ever.
    let waited = tokio::time::timeout(Duration::from_millis(20), next(&mut answers)).await;
    waited.expect_err("nothing more was asked, and the client has not hung up");
    let mut answers = gateway(&[]).answer(post(full(ASKED))).await.into_body();
    assert_eq!(next(&mut answers).await.unwrap(), ANSWERED);
    assert_eq!(next(&mut answers).await, None);
}

#[tokio::test]
async fn a_stream_that_begins_badly_is_a_refusal() {
    for (body, status) in
        [(r#"{"list_services":5}"#, 400), (r#"{"list_services":"#, 400), ("[]", 400), ("5", 400)]
    {
        let response = gateway(&[]).answer(post(full(body))).await;
        assert_eq!(response.status(), status, "{body}");
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(text["code"], Code::InvalidArgument as i32, "{body}");
        assert_eq!(text["error"], text["message"], "{body}");
    }
}

#[test]
fn tokens_are_taken_from_where_clients_put_them() {
    let token = |name: &'static str, value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        metadata(&headers).get(TOKEN).map(|token| token.to_str().unwrap().to_owned())
    };
    assert_eq!(token("authorization", "Bearer abc.1"), Some("abc.1".to_owned()));
    assert_eq!(token("authorization", "bearer  abc.1 "), Some("abc.1".to_owned()));
    assert_eq!(token("authorization", "abc.1"), Some("abc.1".to_owned()));
    assert_eq!(token("grpc-metadata-token", "abc.1"), Some("abc.1".to_owned()));
    assert_eq!(token("token", "abc.1"), Some("abc.1".to_owned()));
    assert_eq!(token("cookie", "abc.1"), None);
}
