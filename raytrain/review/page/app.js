document.body.textContent = 'The page comes with raytrain/review/page/.';
