//! Requests to a served model, again and again, and what became of them. Bounded: so many clients,
//! each with one request under way.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longer than a cold start: a request that is held must not be counted as failed before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients that ask a model, each request on a new connection.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<(usize, Vec<String>)>>,
}

/// One request to `model`, whose answer ends the connection.
fn request(model: &str) -> String {
    let zeros = vec!["0"; 2048].join(",");
    let body = format!(
        r#"{{"inputs":[{{"name":"bytes","datatype":"INT32","shape":[1,2048],"data":[{zeros}]}}]}}"#
    );
    format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {model}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Load {
    /// `clients` clients of `model` at `address` that ask until [`Load::end`].
    pub fn start(address: &str, model: &str, clients: usize) -> Self {
        Self::run(address, model, clients, usize::MAX)
    }

    /// `clients` clients that ask once, all at the same time.
    pub fn burst(address: &str, model: &str, clients: usize) -> Self {
        Self::run(address, model, clients, 1)
    }

    fn run(address: &str, model: &str, clients: usize, most: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let request = Arc::new(request(model));
        let client = |_| {
            let (address, request) = (address.to_owned(), Arc::clone(&request));
            let stopped = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut count, mut failed) = (0, Vec::new());
                while count < most && !stopped.load(Ordering::Relaxed) {
                    count += 1;
                    match ask(&address, &request) {
                        Ok(answer) if answer.starts_with("HTTP/1.1 200") => {}
                        Ok(answer) => failed.push(answer.chars().take(400).collect()),
                        Err(error) => failed.push(error.to_string()),
                    }
                }
                (count, failed)
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, clients }
    }

    /// Stops; gives the number of requests, and what was answered to those that failed.
    pub fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.all()
    }

    /// Waits until each client has asked as often as it was to.
    pub fn all(self) -> (usize, Vec<String>) {
        let mut sum = (0, Vec::new());
        for client in self.clients {
            let (count, failed) = client.join().unwrap();
            sum.0 += count;
            sum.1.extend(failed);
        }
        sum
    }
}

fn ask(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
