"""What the console's stories act on: a tool whose calls are held, and text that wants to be more than text."""

from __future__ import annotations

ORDERS = r"""
kind: backend
name: orders
static: {}
---
kind: tool
name: orders_refund
version: "1"
owner: payments
title: Refund an order
description: "Refunds part or all of an order, in EUR. <script>alert('description')</script>"
effect: write
scopes: [notes.write]
backend: orders
input:
  type: object
  properties: {order_id: {type: string}, amount: {type: number}, reason: {type: string}, more: {type: object}}
  required: [order_id, amount]
static: {text: "refunded"}
record: redacted
---
kind: tool
name: orders_get
owner: shop
title: Read an order
description: Reads one order by its number.
effect: read
backend: orders
input: {type: object, properties: {order_id: {type: string}}}
static: {text: "an order"}
---
kind: policy
name: refunds
tools: [orders_refund]
rules:
  - {id: huge, when: args.amount > 4000, effect: hold, reason: "it is a lot", expires: 4h, reviewers: {scopes: [refunds.review]}}
  - {id: large, when: args.amount > 50, effect: hold, reason: "refunds above 50 EUR need a person <b onmouseover=alert(1)>", expires: 4h}
  - {id: small, when: "true", effect: allow}
---
kind: quota
name: refunds-a-day
tools: [orders_refund]
count: {limit: 20, per: day}
by: [agent]
"""  # noqa: E501 – one rule, one line

VECTORS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>",
    '"><iframe src=https://evil.example></iframe>',
    "' autofocus onfocus=alert(1) x='",
    "</code></pre><form action=https://evil.example><button>Approve</button></form>",
    "<style>*{display:none}body{background:url(https://evil.example)}</style>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<div hx-get='https://evil.example' hx-trigger=load hx-on:load='alert(1)' data-hx-get='/console/sign-out'>",
    "{{ 7 * 7 }} {% raw %} ${alert(1)} <%= 7 %>",
    "]]><!--<script>alert(1)//-->",
    "javascript:alert(1)",
    "[x](javascript:alert(1)) ![x](https://evil.example/x.png)",
    "\u202egpj.exe\u202c \u2066hidden\u2069 zero\u200bwidth \ufeff\u00ad\u2028\u2029\x00\x1b[31m",
    "A\u0301\u0489" * 40,
    "\n" * 2000 + "the real end",
    "x" * 100_000,
)
"""Each goes into every field that an agent, a server or a manifest controls."""
