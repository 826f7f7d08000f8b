"""Sample invoices: the PDF, and the mail with it."""

from __future__ import annotations

from email.message import EmailMessage
from email.utils import format_datetime, localtime, make_msgid

SENDER = "billing@acme.example"
"""The sender of the sample invoices, on the sample client's whitelist."""

BROKEN_PDF = b"%PDF-1.7\nThis file was cut off on its way.\n%%EOF\n"
"""A file that begins like a PDF but is not one."""


def invoice_pdf(
    number: str, amount: float, *, supplier: str = "ACME Supplies Ltd.", currency: str = "EUR"
) -> bytes:
    """Return a PDF of one page with the invoice's number, its lines and the total `amount`."""
    import pymupdf

    document = pymupdf.open()
    page = document.new_page()  # A4, in points
    net = amount / 1.21
    lines = [
        (18, supplier, 72),
        (11, "12 Harbour Street, 28001 Madrid", 92),
        (14, f"Invoice {number}", 140),
        (11, "Date: 2026-11-23", 162),
        (11, "Bill to: IDOM Consulting", 178),
        (11, "1 x  Office supplies, November", 230),
        (11, f"Net: {net:,.2f} {currency}", 270),
        (11, f"VAT 21 %: {amount - net:,.2f} {currency}", 286),
        (13, f"Total: {amount:,.2f} {currency}", 312),
    ]
    for size, text, height in lines:
        page.insert_text((72, height), text, fontsize=size)
    page.draw_line((72, 205), (523, 205))
    data = document.tobytes()
    document.close()
    return bytes(data)


def invoice_mail(
    recipient: str,
    *,
    pdf: bytes | None,
    number: str = "INV-1001",
    sender: str = SENDER,
) -> EmailMessage:
    """Return a mail with this PDF attached, or without an attachment."""
    message = EmailMessage()
    message["From"] = f"ACME Billing <{sender}>"
    message["To"] = recipient
    message["Subject"] = f"Invoice {number}"
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = make_msgid(domain="acme.example")
    message.set_content(f"Dear customer,\n\nplease find our invoice {number} attached.\n\nACME Billing\n")
    if pdf is not None:
        message.add_attachment(pdf, maintype="application", subtype="pdf", filename=f"{number}.pdf")
    return message
