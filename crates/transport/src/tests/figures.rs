//! Figures, printed rather than asserted: run with `--ignored --nocapture`.

#![expect(clippy::print_stdout, reason = "figures are for people")]

use std::time::Instant;

use super::relay::Relay;
use super::*;

/// Time that the threads of this process have run so far.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.map(|task| {
        let path = task.unwrap().path().join("schedstat");
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        stat.split_whitespace().next().map_or(0, |nanos| nanos.parse::<u64>().unwrap())
    });
    Duration::from_nanos(nanos.sum())
}

fn report(what: &str, count: u64, bytes: u64, began: Instant, cpu_began: Duration) {
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), (cpu() - cpu_began).as_secs_f64());
    println!(
        "\n{what}: {:.0}/s, {:.0} MB/s, {:.2} us of processor each (both nodes), {:.2} processors",
        count as f64 / seconds,
        bytes as f64 / seconds / 1e6,
        cpu / count as f64 * 1e6,
        cpu / seconds,
    );
}

/// `in_flight` callers, each with one request of 128 bytes underway at a time.
async fn round_trips(in_flight: usize, each: u64) {
    let (one, mut two) = pair(&authority()).await;
    let echo = tokio::spawn(async move {
        while let Some(event) = two.events.recv().await {
            if let Event::Request(body, _, reply) = event {
                reply.send(body);
            }
        }
    });
    let (began, cpu_began) = (Instant::now(), cpu());
    let callers: Vec<_> = (0..in_flight)
        .map(|_| {
            let transport = one.transport.clone();
            let body = Bytes::from_static(&[7; 128]);
            tokio::spawn(async move {
                for _ in 0..each {
                    transport.request(NodeId(2), body.clone(), PATIENCE).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let count = in_flight as u64 * each;
    let what = format!("128 B request/reply, {in_flight} in flight");
    report(&what, count, count * 256, began, cpu_began);
    echo.abort();
}

#[tokio::test]
#[ignore = "a measurement"]
async fn request_and_reply() {
    for (in_flight, each) in [(1, 20_000), (64, 10_000), (1_000, 1_000)] {
        round_trips(in_flight, each).await;
    }
}

/// Appends one way, `burst` messages of one entry per send, with an answer per send, `windows` sends
/// underway.
async fn appends(burst: u64, bytes: usize, sends: u64, windows: u64) {
    let ca = authority();
    let (mut one, mut two) = pair(&ca).await;
    let answering = two.transport.clone();
    let answer = tokio::spawn(async move {
        let (mut received, mut sent) = (0, 0);
        loop {
            let (_, messages) = two.messages().await;
            received += messages.len() as u64;
            while sent < received / burst {
                sent += 1;
                let body = Body::AppendAccepted { last: LogIndex(sent) };
                let answer = Message { from: NodeId(2), to: NodeId(1), body, ..beat(2, 1, 0) };
                answering.send(NodeId(1), vec![answer]);
            }
        }
    });
    let (began, cpu_began) = (Instant::now(), cpu());
    let (mut sent, mut accepted) = (0, 0);
    while accepted < sends {
        while sent < sends && sent - accepted < windows {
            let first = sent * burst;
            let messages = (1..=burst).map(|index| append(1, 2, sent % 16, first + index, bytes));
            one.transport.send(NodeId(2), messages.collect());
            sent += 1;
        }
        accepted += one.messages().await.1.len() as u64;
    }
    let what = format!("appends of {bytes} B, {burst} a send, {windows} sends underway");
    report(&what, sends * burst, sends * burst * bytes as u64, began, cpu_began);
    let frames = one.figures.counter("quorate_transport_sent_frames_total{append}");
    println!("    {:.1} messages a frame", (sends * burst) as f64 / frames as f64);
    answer.abort();
}

#[tokio::test]
#[ignore = "a measurement"]
async fn append_frames() {
    appends(1, 128, 20_000, 1).await;
    appends(1, 128, 200_000, 64).await;
    appends(64, 128, 20_000, 1).await;
    appends(64, 128, 50_000, 8).await;
    appends(16, 4 << 10, 20_000, 8).await;
    appends(1, 1 << 20, 3_000, 8).await;
}

/// One append lane over a link of 140 ms.
#[tokio::test]
#[ignore = "a measurement"]
async fn long_link() {
    const SENDS: u64 = 600;
    let ca = authority();
    let (mut one, mut two) = (Node::open(&ca, 1).await, Node::open(&ca, 2).await);
    one.transport.label_peer("n2", &one.figures);
    let relay = Relay::open(two.transport.local_addr(), Duration::from_millis(70)).await;
    one.dial_at(2, relay.address());
    one.up(2).await;
    let (began, cpu_began) = (Instant::now(), cpu());
    let mut sent = 0;
    let mut received = 0;
    while received < SENDS {
        while sent < SENDS && sent - received < 24 {
            sent += 1;
            one.transport.send(NodeId(2), vec![append(1, 2, 7, sent, 1 << 20)]);
        }
        received += two.messages().await.1.len() as u64;
    }
    report("appends of 1 MiB, one lane, 140 ms", SENDS, SENDS << 20, began, cpu_began);
    let rtt = one.figures.gauge("quorate_transport_rtt_us{n2}");
    println!("    round trip {:.0} ms", rtt / 1e3);
}
