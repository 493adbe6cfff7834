//! The gateway on sockets, with workers and clients in this process.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::Request;
use lithe::gateway::{RevisionWeight, WorkerState};
use lithe_gateway::options::Limits;
use support::{Client, FakeWorker, Manner, Running, grpc_request, push, until, worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const READY: WorkerState = WorkerState::Ready;

async fn three() -> [FakeWorker; 3] {
    let start = || FakeWorker::start(Manner::Echo);
    [start().await, start().await, start().await]
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_requests_of_one_connection_are_spread_over_all_workers() {
    let workers = three().await;
    let told = workers.iter().map(|worker| worker.told(READY)).collect();
    let gateway = Running::start(told, Limits::default()).await;
    let client = gateway.client().await;
    // Fewer than one connection may carry: a client that has not read the limit yet is refused beyond.
    let calls = (0..240).map(|n| client.grpc(format!("request {n}")));
    for (n, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(
            (answer.grpc(), &answer.body[..]),
            (Some("0"), format!("request {n}").as_bytes())
        );
    }
    for worker in &workers {
        assert!(worker.requests() >= 40, "{}", worker.requests());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_workers_come_and_go_a_hundred_times() {
    let stays = FakeWorker::start(Manner::Echo).await;
    let mut gateway = Running::start(vec![stays.told(READY)], Limits::default()).await;
    let address = gateway.grpc;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let client = Client::connect(address).await.unwrap();
                let mut sent = 0_u64;
                while !*stopped.borrow() {
                    let answer = client.grpc("x").await.unwrap();
                    let said = (answer.grpc(), &answer.body[..]);
                    assert_eq!(said, (Some("0"), &b"x"[..]), "after {sent}: {answer:?}");
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    let mut used = 0;
    for round in 0..100 {
        let comes = FakeWorker::start(Manner::Echo).await;
        gateway.tell(vec![stays.told(READY), comes.told(READY)]).await;
        until(|| comes.requests() > 0).await;
        used += 1;
        // Half of them say GOAWAY before the cluster tells that they go.
        if round % 2 == 0 {
            gateway.tell(vec![stays.told(READY)]).await;
            comes.end().await;
        } else {
            comes.end().await;
            gateway.tell(vec![stays.told(READY)]).await;
        }
    }
    stop.send_replace(true);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    assert_eq!(used, 100);
    assert!(sent > 100, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_wait_for_the_first_worker_and_all_are_answered() {
    let mut gateway = Running::start(Vec::new(), Limits::default()).await;
    let mut demanded = gateway.gateway.demanded();
    let client = gateway.client().await;
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc(format!("{n}")).await })
        })
        .collect();
    demanded.wait_for(|sequence| *sequence == 1).await.unwrap();
    let model = gateway.gateway.clone();
    until(|| model.demand().waiting.first().is_some_and(|waits| waits.requests == 100)).await;
    let signals = model.signals(Instant::now()).remove(0).signals;
    assert_eq!((signals.queued, signals.counters.arrivals, signals.ready), (100, 100, false));
    // The pod is there and loads its model; the cluster has not told yet that it is ready.
    let first = FakeWorker::start(Manner::Echo).await;
    first.seen.ready.store(false, Ordering::SeqCst);
    gateway.tell(vec![first.told(WorkerState::Starting)]).await;
    assert_eq!(first.requests(), 0, "a worker that is not ready got a request");
    first.seen.ready.store(true, Ordering::SeqCst);
    for (n, call) in calls.into_iter().enumerate() {
        let answer = call.await.unwrap().unwrap();
        assert_eq!((answer.grpc(), &answer.body[..]), (Some("0"), n.to_string().as_bytes()));
    }
    assert_eq!(first.requests(), 100);
    assert!(gateway.gateway.demand().waiting.is_empty());
    let signals = gateway.gateway.signals(Instant::now()).remove(0).signals;
    assert!(signals.cold_start.is_some() && signals.counters.completions == 100, "{signals:?}");
}

#[tokio::test]
async fn what_waits_is_bounded_and_refused_with_a_hint_in_the_protocols_form() {
    let limits = Limits { held_requests: 2, hold: Duration::from_millis(300), ..Limits::default() };
    let gateway = Running::start(Vec::new(), limits).await;
    let client = gateway.client().await;
    let rest = Client::connect(gateway.http).await.unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc("x").await.unwrap() })
        })
        .collect();
    until(|| gateway.gateway.demand().waiting.first().is_some_and(|waits| waits.requests == 2))
        .await;
    let full = client.grpc("x").await.unwrap();
    assert_eq!((full.grpc(), full.header("grpc-retry-pushback-ms")), (Some("8"), "1000"));
    assert!(full.header("grpc-message").contains("n/m"), "{full:?}");
    let full =
        rest.send(Request::post("http://m/v2/models/m/infer").body(()).unwrap(), Bytes::new());
    let full = full.await.unwrap();
    assert_eq!((full.status, full.header("retry-after")), (429, "1"));
    assert!(full.body.starts_with(b"{\"error\":"), "{full:?}");
    for call in waiting {
        let late = call.await.unwrap();
        assert_eq!((late.grpc(), late.header("grpc-retry-pushback-ms")), (Some("14"), "5000"));
    }
    let counters = gateway.gateway.signals(Instant::now()).remove(0).signals.counters;
    assert_eq!((counters.refused.queue_full, counters.refused.other, counters.missed), (2, 2, 4));
}

#[tokio::test]
async fn the_deadline_is_passed_on_reduced_by_the_wait_and_ends_it() {
    let mut gateway = Running::start(Vec::new(), Limits::default()).await;
    let client = gateway.client().await;
    let with = |timeout: &'static str| {
        let mut request = grpc_request();
        request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        request
    };
    let late = client.send(with("50m"), Bytes::new()).await.unwrap();
    assert_eq!(late.grpc(), Some("4"));
    let waits = {
        let (client, request) = (client.clone(), with("40S"));
        tokio::spawn(async move { client.send(request, Bytes::new()).await.unwrap() })
    };
    until(|| !gateway.gateway.demand().waiting.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let first = FakeWorker::start(Manner::Echo).await;
    gateway.tell(vec![first.told(READY)]).await;
    let answer = waits.await.unwrap();
    let left = lithe_gateway::deadline::parse(answer.header("x-timeout")).unwrap();
    assert!(left <= Duration::from_millis(39_980), "{left:?}");
    let direct = client.send(with("40S"), Bytes::new()).await.unwrap();
    let left = lithe_gateway::deadline::parse(direct.header("x-timeout")).unwrap();
    assert!(left <= Duration::from_secs(40) && left > Duration::from_secs(30), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_did_not_look_at_goes_to_another_and_what_it_had_does_not() {
    let rows =
        [(Manner::Refuse, "0", 1_u64), (Manner::Unavailable, "0", 1), (Manner::Break, "14", 0)];
    for (manner, status, at_other) in rows {
        let bad = FakeWorker::start(manner).await;
        let good = FakeWorker::start(Manner::Echo).await;
        let told = vec![bad.told(READY), good.told(READY)];
        let gateway = Running::start(told, Limits::default()).await;
        let client = gateway.client().await;
        // Until chance takes one there.
        while bad.requests() == 0 {
            let before = good.requests();
            let answer = client.grpc("body").await.unwrap();
            if bad.requests() > 0 {
                assert_eq!(answer.grpc(), Some(status), "{manner:?}");
                assert_eq!(good.requests() - before, at_other, "{manner:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_be_reached_costs_no_request_and_is_found_again() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let gateway = Running::start(vec![worker(address, READY)], Limits::default()).await;
    let client = gateway.client().await;
    let waits = {
        let client = client.clone();
        tokio::spawn(async move { client.grpc("x").await.unwrap() })
    };
    until(|| !gateway.gateway.demand().waiting.is_empty()).await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let back = FakeWorker::on(listener, Manner::Echo);
    assert_eq!(waits.await.unwrap().grpc(), Some("0"));
    assert_eq!(back.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_five_times_in_a_row_is_left_alone() {
    let bad = FakeWorker::start(Manner::Break).await;
    let good = FakeWorker::start(Manner::Echo).await;
    let told = vec![bad.told(READY), good.told(READY)];
    let gateway = Running::start(told, Limits::default()).await;
    let client = gateway.client().await;
    while bad.requests() < 5 {
        client.grpc("x").await.unwrap();
    }
    for _ in 0..200 {
        assert_eq!(client.grpc("x").await.unwrap().grpc(), Some("0"));
    }
    assert_eq!(bad.requests(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_flows_in_both_directions_piece_by_piece() {
    let echo = FakeWorker::start(Manner::Stream).await;
    let gateway = Running::start(vec![echo.told(READY)], Limits::default()).await;
    let client = gateway.client().await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(grpc_request(), false).unwrap();
    let mut body = answer.await.unwrap().into_body();
    for n in 0..50 {
        let piece = Bytes::from(format!("piece {n}"));
        assert!(push(&mut stream, piece.clone()).await);
        // The next piece is sent only when this one is back.
        let mut back = Vec::new();
        while back.len() < piece.len() {
            let data = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            back.extend_from_slice(&data);
        }
        assert_eq!(back, piece);
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap().get("grpc-status").unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_pass_both_ways_over_grpc_and_http1() {
    let echo = FakeWorker::start(Manner::Echo).await;
    let gateway = Running::start(vec![echo.told(READY)], Limits::default()).await;
    let large: Bytes = (0..10_000_000_u32).map(|n| n as u8).collect::<Vec<_>>().into();
    let answer = gateway.client().await.grpc(large.clone()).await.unwrap();
    assert!(answer.grpc() == Some("0") && answer.body == large);
    let mut socket = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: model.example\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    let mut back = Vec::new();
    let (mut reads, mut writes) = socket.split();
    let write = async {
        writes.write_all(head.as_bytes()).await.unwrap();
        writes.write_all(&large).await.unwrap();
    };
    let (_, read) = tokio::join!(write, reads.read_to_end(&mut back));
    read.unwrap();
    let text = String::from_utf8_lossy(&back[..300]).to_lowercase();
    assert!(
        text.starts_with("http/1.1 200") && text.contains("x-authority: model.example"),
        "{text}"
    );
    // The body came in chunks: it is at least as long as it was.
    assert!(back.len() > large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_request_at_the_worker() {
    let silent = FakeWorker::start(Manner::Silent).await;
    let gateway = Running::start(vec![silent.told(READY)], Limits::default()).await;
    let client = gateway.client().await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(grpc_request(), false).unwrap();
    until(|| silent.requests() == 1).await;
    stream.send_reset(Reason::CANCEL);
    until(|| silent.seen.cancelled.load(Ordering::SeqCst) == 1).await;
    assert!(answer.await.is_err());
    // So does one of HTTP/1.1 that closes its connection.
    let mut socket = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    socket.write_all(b"GET /v2 HTTP/1.1\r\nHost: m\r\n\r\n").await.unwrap();
    until(|| silent.requests() == 2).await;
    drop(socket);
    until(|| silent.seen.cancelled.load(Ordering::SeqCst) == 2).await;
    until(|| gateway.gateway.signals(Instant::now()).remove(0).signals.in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_it_ends_is_answered() {
    let echo = FakeWorker::start(Manner::Stream).await;
    let gateway = Running::start(vec![echo.told(READY)], Limits::default()).await;
    let client = gateway.client().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut sender = client.sender.clone().ready().await.unwrap();
        let (answer, stream) = sender.send_request(grpc_request(), false).unwrap();
        streams.push((answer.await.unwrap().into_body(), stream));
    }
    gateway.begin_to_end();
    let address = gateway.grpc;
    // Its port closes first.
    let closed = async { while tokio::net::TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
    for (mut body, mut stream) in streams {
        stream.send_data(Bytes::from_static(b"late"), true).unwrap();
        assert_eq!(&body.data().await.unwrap().unwrap()[..], b"late");
        assert_eq!(body.trailers().await.unwrap().unwrap().get("grpc-status").unwrap(), "0");
    }
    gateway.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_the_requests_and_are_acknowledged() {
    let (old, new) = (FakeWorker::start(Manner::Echo).await, FakeWorker::start(Manner::Echo).await);
    let mut gateway = Running::start(Vec::new(), Limits::default()).await;
    let weight = |revision: &str, weight| RevisionWeight { revision: revision.into(), weight };
    gateway.model.weights = vec![weight("old", 90), weight("new", 10)];
    let of = |worker: &FakeWorker, revision: &str| {
        let mut told = worker.told(READY);
        told.revision = revision.into();
        told
    };
    gateway.tell(vec![of(&old, "old"), of(&new, "new")]).await;
    let applied = gateway.gateway.acknowledgement().models.remove(0);
    assert_eq!((applied.weights, applied.ready_workers), (gateway.model.weights.clone(), 2));
    let client = gateway.client().await;
    for _ in 0..1000 {
        client.grpc("x").await.unwrap();
    }
    // Ten of a hundred of 1000, within four standard deviations.
    assert!((62..=138).contains(&new.requests()), "{}", new.requests());
    gateway.model.weights = vec![weight("old", 0), weight("new", 1)];
    gateway.tell(vec![of(&old, "old"), of(&new, "new")]).await;
    let before = old.requests();
    for _ in 0..100 {
        client.grpc("x").await.unwrap();
    }
    assert_eq!(old.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_and_taken_once_it_is_free() {
    let echo = FakeWorker::start(Manner::Echo).await;
    let mut gateway = Running::start(vec![echo.told(READY)], Limits::default()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    gateway.model.grpc_port = port;
    let told =
        tokio::time::timeout(Duration::from_millis(200), gateway.tell(vec![echo.told(READY)]));
    assert!(told.await.is_err(), "acknowledged although the port is taken");
    let applied = gateway.gateway.acknowledgement().models.remove(0);
    assert!(applied.error.as_ref().is_some_and(|error| error.contains(&port.to_string())));
    drop(taken);
    gateway.tell(vec![echo.told(READY)]).await;
    gateway.grpc.set_port(port);
    assert_eq!(gateway.client().await.grpc("x").await.unwrap().grpc(), Some("0"));
}
