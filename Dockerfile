FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip curl ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home ponder
COPY --from=build /src/target/release/ponder /usr/local/bin/ponder
USER ponder
ENV PONDER_HOST=0.0.0.0 PONDER_HOME=/home/ponder/.cache/ponder
VOLUME /home/ponder/.cache/ponder
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD curl -fs http://127.0.0.1:8000/ready
ENTRYPOINT ["ponder"]
CMD ["serve"]
