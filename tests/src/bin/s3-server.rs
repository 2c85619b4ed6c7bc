//! An S3 server in a process of its own, so that it can be killed. See `kvtier_tests::s3_server`.
//!
//! `s3-server DIR KEY_ID SECRET PORT` keeps buckets as directories of `DIR`, prints the port that it took (a free one
//! if it is 0), and serves until it is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a broken promise must stop a test

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, key_id, secret, port] = args.as_slice() else {
        panic!("usage: s3-server DIR KEY_ID SECRET PORT")
    };
    let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).expect("a directory"));
    service.set_auth(SimpleAuth::from_single(key_id.as_str(), secret.as_str()));
    let service = service.build();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let port: u16 = port.parse().expect("a port");
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
        println!("{}", listener.local_addr().unwrap().port());
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            let service = service.clone();
            tokio::spawn(async move {
                if let Err(error) =
                    http.http1_only().serve_connection(TokioIo::new(connection), service).await
                {
                    // Connections break: that is what these tests are about.
                    drop(error);
                }
            });
        }
    });
}
