//! A connection's requests on their way to the router and back.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::time::Instant;

use super::activity::Activity;
use super::places::Place;
use crate::api::guarded::GuardedBody;

/// How a request's connection came in. A request extension.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Arrival {
    /// Every ordinary place is taken by one that works: only the most important is served.
    pub is_reserved: bool,
}

/// What serves the requests of one connection.
pub(super) struct Requests {
    router: TowerToHyperService<Router>,
    place: Arc<Place>,
}

impl Requests {
    pub fn new(router: Router, place: Arc<Place>) -> Self {
        Self {
            router: TowerToHyperService::new(router),
            place,
        }
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<GuardedBody<Answering>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let activity = Arc::clone(&self.place.activity);
        let has_body = !request.body().is_end_stream();
        activity.begun(Instant::now(), has_body);
        let answering = Answering(Arc::clone(&activity));
        let mut request = request.map(|incoming| Body::new(RequestBody { incoming, activity }));
        let is_reserved = self.place.is_reserved();
        request.extensions_mut().insert(Arrival { is_reserved });
        let answer = self.router.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| GuardedBody::new(body, answering)))
        })
    }
}

/// A request's body, which tells whether it is waited for.
struct RequestBody {
    incoming: Incoming,
    activity: Arc<Activity>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Pending => self.activity.body_waits(Instant::now()),
            Poll::Ready(Some(Ok(_))) if !self.incoming.is_end_stream() => self.activity.body_came(),
            // Whoever failed to send its body has left, which the connection finds out itself.
            Poll::Ready(Some(Err(_))) => self.activity.body_came(),
            Poll::Ready(_) => self.activity.body_ended(),
        }
        Poll::Ready(ready!(polled))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.activity.body_dropped();
    }
}

/// Lives as long as a request is answered.
pub(super) struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered(Instant::now());
    }
}
