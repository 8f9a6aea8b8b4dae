// What stands behind whoever is measured: an MCP server and an HTTP service in one, a few microseconds a call.
//
//   stub PORT TOOLS
//
// POST /mcp   one tool `echo` (n, text) and TOOLS - 1 others, in the 2026-07-28 revision and, with one session for
//             everybody, in the handshake era: initialize, ping, tools/list, tools/call; one JSON object each
// POST /echo  answers the body it was sent
//
// One thread, epoll, keep-alive. It reads as much JSON as it needs and no more: it is for loopback and for this bench.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct { char *bytes; size_t size, room; } Buffer;
typedef struct { int fd; Buffer in, out; size_t sent; } Client;
typedef struct { const char *at; size_t size; } Piece;

static Buffer tools;

static void add(Buffer *buffer, const char *bytes, size_t size) {
    if (buffer->size + size + 1 > buffer->room) buffer->bytes = realloc(buffer->bytes, buffer->room = 2 * (buffer->size + size + 1));
    memcpy(buffer->bytes + buffer->size, bytes, size);
    buffer->size += size;
    buffer->bytes[buffer->size] = 0;
}

static void print(Buffer *buffer, const char *format, ...) {
    char text[2048];
    va_list given;
    va_start(given, format);
    int size = vsnprintf(text, sizeof text, format, given);
    va_end(given);
    add(buffer, text, size);
}

// The JSON value that begins here: up to its closing quote or bracket, or the end of a number or word.
static size_t value_size(const char *at, const char *end) {
    int depth = 0, quoted = 0;
    for (const char *c = at; c < end; c++) {
        if (quoted) {
            if (*c == '\\') c++;
            else if (*c == '"') { quoted = 0; if (!depth) return c + 1 - at; }
        } else if (*c == '"') quoted = 1;
        else if (*c == '{' || *c == '[') depth++;
        else if (*c == '}' || *c == ']') { if (!depth) return c - at; if (!--depth) return c + 1 - at; }
        else if (!depth && (*c == ',' || *c == ' ' || *c == '\n')) return c - at;
    }
    return end - at;
}

// The value of the first member with this quoted name, wherever it is; size 0 when there is none.
static Piece member(Piece json, const char *name) {
    const char *end = json.at + json.size, *found = memmem(json.at, json.size, name, strlen(name));
    if (!found) return (Piece){"", 0};
    const char *at = found + strlen(name);
    while (at < end && (*at == ' ' || *at == ':' || *at == '\n')) at++;
    return (Piece){at, value_size(at, end)};
}

static int is(Piece piece, const char *text) { return piece.size == strlen(text) && !memcmp(piece.at, text, piece.size); }

static void respond(Client *client, const char *more, Piece body) {
    print(&client->out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%scontent-length: %zu\r\n\r\n", more, body.size);
    add(&client->out, body.at, body.size);
}

static void answer_rpc(Client *client, Piece json) {
    static Buffer body;
    Piece method = member(json, "\"method\""), id = member(json, "\"id\"");
    if (!method.size || !id.size) {
        print(&client->out, "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    int modern = memmem(json.at, json.size, "io.modelcontextprotocol/protocolVersion", 39) != NULL;
    const char *kind = modern ? "\"resultType\":\"complete\"," : "", *more = "";
    body.size = 0;
    print(&body, "{\"jsonrpc\":\"2.0\",\"id\":%.*s,", (int)id.size, id.at);
    if (is(method, "\"tools/call\"")) {
        Piece arguments = member(json, "\"arguments\""), text = member(arguments, "\"text\"");
        print(&body, "\"result\":{%s\"content\":[{\"type\":\"text\",\"text\":", kind);
        add(&body, text.size ? text.at : "\"\"", text.size ? text.size : 2);
        print(&body, "}],\"structuredContent\":");
        add(&body, arguments.size ? arguments.at : "{}", arguments.size ? arguments.size : 2);
        print(&body, ",\"isError\":false}}");
    } else if (is(method, "\"tools/list\"")) {
        print(&body, "\"result\":{%s%s\"tools\":", kind, modern ? "\"ttlMs\":0,\"cacheScope\":\"private\"," : "");
        add(&body, tools.bytes, tools.size);
        print(&body, "}}");
    } else if (is(method, "\"initialize\"")) {
        more = "mcp-session-id: bench\r\n";
        print(&body, "\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{\"tools\":{}},"
                     "\"serverInfo\":{\"name\":\"stub\",\"version\":\"1\"}}}");
    } else if (is(method, "\"server/discover\"")) {
        print(&body, "\"result\":{%s\"ttlMs\":0,\"cacheScope\":\"private\",\"capabilities\":{\"tools\":{}},"
                     "\"supportedVersions\":[\"2026-07-28\"],\"serverInfo\":{\"name\":\"stub\",\"version\":\"1\"},\"_meta\":"
                     "{\"io.modelcontextprotocol/serverInfo\":{\"name\":\"stub\",\"version\":\"1\"}}}}", kind);
    } else if (is(method, "\"ping\"")) print(&body, "\"result\":{}}");
    else print(&body, "\"error\":{\"code\":-32601,\"message\":\"Method not found\"}}");
    respond(client, more, (Piece){body.bytes, body.size});
}

static void answer(Client *client, const char *head, Piece body) {
    if (!strncmp(head, "POST /echo ", 11)) respond(client, "", body);
    else if (!strncmp(head, "POST ", 5)) answer_rpc(client, body);
    else print(&client->out, "HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 0\r\n\r\n");
}

// Answer every whole request that is there, and keep the rest.
static void answer_all(Client *client) {
    size_t done = 0;
    for (;;) {
        char *head = client->in.bytes + done, *end = memmem(head, client->in.size - done, "\r\n\r\n", 4);
        if (!end) break;
        *end = 0;
        char *length = strcasestr(head, "\r\ncontent-length:");
        *end = '\r';
        size_t size = length ? strtoul(length + 17, NULL, 10) : 0, begins = end + 4 - client->in.bytes;
        if (client->in.size < begins + size) break;
        answer(client, head, (Piece){client->in.bytes + begins, size});
        done = begins + size;
    }
    memmove(client->in.bytes, client->in.bytes + done, client->in.size -= done);
}

static int read_some(Client *client) {
    char some[65536];
    for (;;) {
        ssize_t got = read(client->fd, some, sizeof some);
        if (got <= 0) return got < 0 && errno == EAGAIN;
        add(&client->in, some, got);
        if (got < (ssize_t)sizeof some) return 1;
    }
}

static int write_all(Client *client) {
    while (client->sent < client->out.size) {
        ssize_t put = write(client->fd, client->out.bytes + client->sent, client->out.size - client->sent);
        if (put < 0) return errno == EAGAIN;
        client->sent += put;
    }
    client->sent = client->out.size = 0;
    return 1;
}

static void make_tools(int count) {
    print(&tools, "[{\"name\":\"echo\",\"title\":\"Echo\",\"description\":\"Answers what it is sent.\",\"inputSchema\":{\"type\":\"object\","
                  "\"properties\":{\"n\":{\"type\":\"integer\",\"minimum\":0},\"text\":{\"type\":\"string\",\"maxLength\":1000}},"
                  "\"required\":[\"n\",\"text\"],\"additionalProperties\":false}}");
    for (int i = 1; i < count; i++)
        print(&tools, ",{\"name\":\"issue_%05d\",\"title\":\"Issue tool %d\",\"description\":\"Files or changes an issue of a repository "
                      "and says what came of it; number %d of many that are alike.\",\"inputSchema\":{\"type\":\"object\",\"properties\":{"
                      "\"repository\":{\"type\":\"string\",\"description\":\"owner and name\"},\"title\":{\"type\":\"string\",\"maxLength\":200},"
                      "\"text\":{\"type\":\"string\",\"description\":\"in Markdown\"},\"labels\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
                      "\"limit\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":100},\"state\":{\"type\":\"string\",\"enum\":[\"open\",\"closed\"]}},"
                      "\"required\":[\"repository\",\"title\"],\"additionalProperties\":false}}", i, i, i);
    print(&tools, "]");
}

int main(int count, char **arguments) {
    if (count != 3) { fprintf(stderr, "stub PORT TOOLS\n"); return 2; }
    make_tools(atoi(arguments[2]));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) { perror("stub"); return 1; }
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            Client *client = events[i].data.ptr;
            if (!client) {
                for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    client = calloc(1, sizeof *client);
                    client->fd = fd;
                    add(&client->in, "", 0);
                    event = (struct epoll_event){.events = EPOLLIN, .data.ptr = client};
                    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                }
                continue;
            }
            int alive = events[i].events & EPOLLOUT ? 1 : read_some(client);
            if (alive) answer_all(client);
            if (!alive || !write_all(client)) {
                close(client->fd);
                free(client->in.bytes);
                free(client->out.bytes);
                free(client);
                continue;
            }
            event = (struct epoll_event){.events = EPOLLIN | (client->out.size ? EPOLLOUT : 0), .data.ptr = client};
            epoll_ctl(poll, EPOLL_CTL_MOD, client->fd, &event);
        }
    }
}
