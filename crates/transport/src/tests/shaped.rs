//! Delay, loss and cuts between nodes.

use super::*;
use crate::{RequestError, Shape, Shaped, Unknown};

/// Two connected nodes that share a link.
async fn shaped_pair(seed: u64) -> (Arc<Shaped>, Node, Node) {
    let ca = authority();
    let link = Arc::new(Shaped::new(seed));
    let open = |id| {
        let mut recipe = Recipe::new(&ca, id);
        recipe.link = link.clone();
        recipe.open()
    };
    let (mut one, mut two) = (open(1).await, open(2).await);
    one.dial(&two);
    two.dial(&one);
    one.up(2).await;
    two.up(1).await;
    (link, one, two)
}

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn cut() -> Shape {
    Shape { cut: true, ..Shape::default() }
}

fn delayed(ms: u64) -> Shape {
    Shape { delay: Duration::from_millis(ms), ..Shape::default() }
}

#[tokio::test]
async fn a_cut_loses_messages_one_way_until_it_heals() {
    let (link, mut one, mut two) = shaped_pair(1).await;
    link.set(ONE, TWO, cut());
    one.transport.send(TWO, vec![beat(1, 2, 1), append(1, 2, 7, 1, 10)]);
    // The other way is open, and the writer has had its turn when the answer is here.
    two.transport.send(ONE, vec![beat(2, 1, 2)]);
    assert_eq!(one.collect(1).await, [beat(2, 1, 2)]);
    assert_eq!(one.figures.counter("quorate_transport_dropped_messages_total{link}"), 2);
    link.heal();
    one.transport.send(TWO, vec![beat(1, 2, 3)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 3)]);
}

#[tokio::test]
async fn delays_keep_the_order_of_a_lane() {
    let (link, one, mut two) = shaped_pair(1).await;
    link.set(ONE, TWO, delayed(80));
    one.transport.send(TWO, vec![append(1, 2, 7, 1, 10)]);
    // Let the writer give the first one its delay.
    tokio::task::yield_now().await;
    link.set(ONE, TWO, delayed(20));
    one.transport.send(TWO, vec![append(1, 2, 7, 2, 10)]);
    tokio::task::yield_now().await;
    link.heal();
    one.transport.send(TWO, vec![append(1, 2, 7, 3, 10)]);
    let indexes: Vec<_> = two.collect(3).await.iter().map(index_of).collect();
    assert_eq!(indexes, [1, 2, 3]);
}

#[tokio::test]
async fn a_delayed_lane_does_not_hold_up_another() {
    let (link, one, mut two) = shaped_pair(1).await;
    link.set(ONE, TWO, delayed(200));
    one.transport.send(TWO, vec![append(1, 2, 7, 1, 10)]);
    tokio::task::yield_now().await;
    link.heal();
    one.transport.send(TWO, vec![beat(1, 2, 1)]);
    let messages = two.collect(2).await;
    assert_eq!(round_of(&messages[0]), Some(1));
    assert_eq!(index_of(&messages[1]), 1);
}

#[tokio::test]
async fn losses_hit_whole_frames_and_the_rest_keeps_its_order() {
    let (link, one, mut two) = shaped_pair(3).await;
    link.set(ONE, TWO, Shape { loss: 0.5, ..Shape::default() });
    for index in 1..=200 {
        one.transport.send(TWO, vec![append(1, 2, 7, index, 10)]);
        tokio::task::yield_now().await;
    }
    link.heal();
    one.transport.send(TWO, vec![append(1, 2, 7, 1_000, 10)]);
    let mut indexes = Vec::new();
    while indexes.last() != Some(&1_000) {
        indexes.extend(two.messages().await.1.iter().map(index_of));
    }
    assert!(indexes.is_sorted());
    let lost = one.figures.counter("quorate_transport_dropped_messages_total{link}");
    assert_eq!(indexes.len() as u64 + lost, 201);
    assert!(lost > 0);
}

#[tokio::test]
async fn a_cut_holds_requests_until_it_heals_or_their_deadline() {
    let (link, one, mut two) = shaped_pair(1).await;
    link.set(ONE, TWO, cut());
    let hopeless = one.transport.request(TWO, "a".into(), Duration::from_millis(100)).await;
    assert_eq!(hopeless, Err(RequestError::Unknown(Unknown::DeadlineElapsed)));
    let transport = one.transport.clone();
    let held = tokio::spawn(async move { transport.request(TWO, "b".into(), PATIENCE).await });
    tokio::task::yield_now().await;
    link.heal();
    loop {
        let (body, _, reply) = two.request().await;
        reply.send(body.clone());
        if body == "b" {
            break;
        }
    }
    assert_eq!(held.await.unwrap().unwrap(), "b");
}

#[tokio::test]
async fn replies_are_shaped_too() {
    let (link, one, mut two) = shaped_pair(1).await;
    link.set(TWO, ONE, cut());
    let transport = one.transport.clone();
    let asked = tokio::spawn(async move { transport.request(TWO, "a".into(), PATIENCE).await });
    two.request().await.2.send("b".into());
    tokio::task::yield_now().await;
    assert!(!asked.is_finished());
    link.heal();
    assert_eq!(asked.await.unwrap().unwrap(), "b");
}
