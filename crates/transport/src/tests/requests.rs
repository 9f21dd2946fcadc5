//! Requests and replies.

use super::*;
use crate::{NotSent, RequestError, Unknown};

const LONG: Duration = PATIENCE;

/// A request in a task of its own.
fn ask(
    node: &Node,
    to: u64,
    body: impl Into<Bytes>,
    deadline: Duration,
) -> tokio::task::JoinHandle<Result<Bytes, RequestError>> {
    let (transport, body) = (node.transport.clone(), body.into());
    tokio::spawn(async move { transport.request(NodeId(to), body, deadline).await })
}

#[tokio::test]
async fn a_thousand_requests_in_flight_get_their_own_replies() {
    const COUNT: usize = 1_000;
    let (one, mut two) = pair(&authority()).await;
    let asked: Vec<_> = (0..COUNT).map(|number| ask(&one, 2, number.to_string(), LONG)).collect();
    let mut waiting = Vec::new();
    while waiting.len() < COUNT {
        waiting.push(two.request().await);
    }
    assert_eq!(one.transport.pending_requests(NodeId(2)), COUNT);
    // The last one is answered first.
    for (body, _, reply) in waiting.into_iter().rev() {
        reply.send([b"re: ", &body[..]].concat().into());
    }
    for (number, reply) in asked.into_iter().enumerate() {
        assert_eq!(reply.await.unwrap().unwrap(), format!("re: {number}"));
    }
    assert_eq!(one.transport.pending_requests(NodeId(2)), 0);
    assert!(one.figures.counter("quorate_transport_sent_frames_total{request}") < 100);
}

#[tokio::test]
async fn large_requests_and_replies_arrive_whole() {
    let (one, mut two) = pair(&authority()).await;
    let body = Bytes::from(vec![7; 8 << 20]);
    let asked = ask(&one, 2, body.clone(), LONG);
    let (received, _, reply) = two.request().await;
    assert!(received == body);
    reply.send(received);
    assert!(asked.await.unwrap().unwrap() == body);
}

#[tokio::test]
async fn a_deadline_is_told_to_the_peer_and_kept_here() {
    let (one, mut two) = pair(&authority()).await;
    let asked = ask(&one, 2, "slow", Duration::from_millis(300));
    let (_, deadline_ms, reply) = two.request().await;
    assert!((1..=300).contains(&deadline_ms), "{deadline_ms} ms");
    let result = asked.await.unwrap();
    assert_eq!(result, Err(RequestError::Unknown(Unknown::DeadlineElapsed)));
    assert_eq!(one.transport.pending_requests(NodeId(2)), 0);
    // A late answer disturbs nobody.
    reply.send("late".into());
    let asked = ask(&one, 2, "next", LONG);
    two.request().await.2.send("in time".into());
    assert_eq!(asked.await.unwrap().unwrap(), "in time");
}

#[tokio::test]
async fn a_request_that_nobody_answers_may_have_run() {
    let (one, mut two) = pair(&authority()).await;
    let asked = ask(&one, 2, "lost", LONG);
    drop(two.request().await);
    assert_eq!(asked.await.unwrap(), Err(RequestError::Unknown(Unknown::Dropped)));
}

#[tokio::test]
async fn a_reply_too_large_for_a_frame_is_an_error() {
    let (one, mut two) = pair(&authority()).await;
    let asked = ask(&one, 2, "much", LONG);
    two.request().await.2.send(vec![0; 17 << 20].into());
    assert_eq!(asked.await.unwrap(), Err(RequestError::Unknown(Unknown::Dropped)));
}

#[tokio::test]
async fn requests_that_never_left_say_so() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    let asked = |to, body| ask(&one, to, body, LONG);
    let error = |error| Err(RequestError::NotSent(error));
    assert_eq!(asked(2, Bytes::new()).await.unwrap(), error(NotSent::UnknownPeer));
    one.transport.add_peer(NodeId(2), "n2", "127.0.0.1:9".into()).unwrap();
    assert_eq!(asked(2, Bytes::new()).await.unwrap(), error(NotSent::NotConnected));

    let (one, _two) = pair(&ca).await;
    let large = ask(&one, 2, vec![0; 16 << 20], LONG);
    assert_eq!(large.await.unwrap(), error(NotSent::TooLarge));
}

#[tokio::test]
async fn requests_underway_when_the_connection_is_lost_may_have_run() {
    let (one, mut two) = pair(&authority()).await;
    let asked = ask(&one, 2, "underway", LONG);
    let (_, _, reply) = two.request().await;
    two.transport.close().await;
    assert_eq!(asked.await.unwrap(), Err(RequestError::Unknown(Unknown::ConnectionLost)));
    // The reply's connection is gone, and nothing happens.
    reply.send("too late".into());
}

#[tokio::test]
async fn requests_above_the_bounds_are_refused_before_they_run() {
    let ca = authority();
    let mut small = Recipe::new(&ca, 1);
    small.config.limits.requests_max = 3;
    let mut tiny = Recipe::new(&ca, 2);
    tiny.config.limits.requests_max = 2;
    let (mut one, mut two) = (small.open().await, tiny.open().await);
    one.dial(&two);
    one.up(2).await;

    let first = ask(&one, 2, "1", LONG);
    let second = ask(&one, 2, "2", LONG);
    let (_, _, reply_one) = two.request().await;
    let (_, _, reply_two) = two.request().await;
    // The peer runs two already, and says so.
    let busy = ask(&one, 2, "3", LONG).await.unwrap();
    assert_eq!(busy, Err(RequestError::NotSent(NotSent::Busy)));
    reply_one.send("1".into());
    reply_two.send("2".into());
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());

    // Here three may wait.
    let waiting: Vec<_> = (0..4).map(|_| ask(&one, 2, "", Duration::from_secs(1))).collect();
    let mut full = 0;
    for result in waiting {
        let result = result.await.unwrap();
        full += usize::from(result == Err(RequestError::NotSent(NotSent::QueueFull)));
    }
    assert_eq!(full, 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let (one, mut two) = pair(&authority()).await;
    let asked = ask(&one, 2, "abandoned", LONG);
    let (_, _, reply) = two.request().await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    assert_eq!(one.transport.pending_requests(NodeId(2)), 0);
    reply.send("unheard".into());
    let asked = ask(&one, 2, "next", LONG);
    two.request().await.2.send("heard".into());
    assert_eq!(asked.await.unwrap().unwrap(), "heard");
}
